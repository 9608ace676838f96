"""The page over a tiny model: what holds for all tabs."""

from typing import Any

import pytest
from browsing import shots, tab
from conftest import App
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_every_tab_opens_on_a_furnished_machine(page: Page, small_app: App, small_runs: list[Any]) -> None:
    assert len(small_runs) == 2
    page.goto(small_app.address)
    for name in ("Compare", "Fine-tune", "Evaluate", "Runs"):
        tab(page, name)
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        shots(page, f"tab-{name.lower()}")
