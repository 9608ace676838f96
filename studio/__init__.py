"""The page: compare, fine-tune, evaluate. Run it: python app.py."""
