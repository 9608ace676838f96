"""The page: python app.py, then open the address it prints."""

import argparse
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from inference.engine import Engine
from inference.server import routes
from studio.blocks import CSS, build
from studio.theme import theme


def main() -> None:
    parser = argparse.ArgumentParser(description="Tandem's page: compare, fine-tune, evaluate.")
    parser.add_argument("--port", type=int, default=7860)
    port = parser.parse_args().port
    engine = Engine()
    page = build(engine).queue(max_size=64)
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        theme=theme(),
        css=CSS,
        run_history=False,
        quiet=False,
        app_kwargs={"routes": routes(engine)},  # /v1: every column as a model of an OpenAI-compatible endpoint
    )


if __name__ == "__main__":
    main()
