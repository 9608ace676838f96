"""Scores base and tuned on held-out rows and says whether it helped. Run it: python -m evaluation RUN."""
