"""A browser, and the page over a tiny random model that goes by the default's name, with two runs and an evaluation."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, App, here, wait_for
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARTIFACTS = Path(os.environ.get("ARTIFACTS", ROOT / "artifacts"))
# Page load must not wait for what a machine without a network can't reach.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDTHS = {"wide": 1440, "phone": 390}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a profile of its own, 1440 pixels wide."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, permissions=["clipboard-read"])
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    yield opened
    context.close()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def shot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


def shots(page: Page, name: str) -> None:
    """The page as it stands, at both widths, in both themes: artifacts/name-{wide,phone}-{light,dark}.png."""
    size = page.viewport_size
    for width_name, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 1000})
        for theme in ("light", "dark"):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
            page.wait_for_timeout(250)
            shot(page, f"{name}-{width_name}-{theme}")
    page.evaluate("document.body.classList.remove('dark')")
    if size:
        page.set_viewport_size(size)


def longest(page: Page, tokens: int) -> None:
    """Set the longest answer. A fold that was just opened may set its fields once more: so until it stays."""
    page.get_by_text("How they are asked").click()
    field = page.locator("#length input[type=number]")

    def stays() -> bool:
        field.fill(str(tokens))
        page.keyboard.press("Tab")
        page.wait_for_timeout(400)
        return field.input_value() == str(tokens)

    wait_for(stays, 60)


@pytest.fixture(scope="session")
def furnished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a machine on which two short runs were made of a tiny model, and the first was evaluated.

    The tiny model lies in the cache in the place of smollm2-135m, so everything that goes by that name takes it.
    """
    from evaluation.__main__ import main as evaluation
    from finetune.__main__ import main as finetune

    folder = tmp_path_factory.mktemp("furnished")
    model = folder / "cache" / "smollm2-135m"
    shutil.copytree(tiny_model, model)
    (model / "manifest.json").write_text('{"source": "tiny", "sha256": "tiny"}')
    env = {"TANDEM_RUNS": str(folder / "runs"), "TANDEM_CACHE": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        train = ["train", "--preset", "quick-demo", "--rows", "60", "--tokens-per-batch", "256"]
        for steps in ("4", "6"):
            assert here(finetune, *train, "--steps", steps, "--learning-rate", "2e-2", "--validation-rows", "4") == 0
        first = sorted(path.name for path in (folder / "runs").iterdir() if not path.name.startswith("."))[0]
        assert here(evaluation, first, "--rows", "24", "--max-new-tokens", "8") == 0
    return env


@pytest.fixture(scope="session")
def small_app(furnished: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The page on that machine. Tests share it: leave the two runs as they are, work on copies of your own."""
    started = App(tmp_path_factory.mktemp("small-app"), furnished)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def small_runs(furnished: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Its runs, newest first."""
    from finetune.run import list_runs

    for name, value in furnished.items():
        monkeypatch.setenv(name, value)
    return list_runs()
