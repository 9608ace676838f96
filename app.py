"""The page: python app.py, then open the address it prints."""

import os
import sys

from finetune.memory import LARGE_PAGES

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault(LARGE_PAGES, "1")  # before torch is loaded

from inference.engine import Engine
from inference.server import routes
from studio.access import keep_uploads_private, settle
from studio.blocks import CSS, build
from studio.theme import theme


def main() -> int:
    try:
        access = settle()
    except ValueError as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    keep_uploads_private()
    engine = Engine()
    page = build(engine).queue(max_size=64)
    # /v1: every column as a model of an OpenAI-compatible endpoint
    page.launch(theme=theme(), css=CSS, quiet=True, prevent_thread_lock=True, **access.launch(routes(engine)))
    access.let_mcp_in(page)
    print(f"Tandem is at {access.address()} (Ctrl-C ends it; runs go on).", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
