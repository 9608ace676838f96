"""The page's first paint, and what each of its updates costs the server while a run trains and a chat streams.

    python -m benchmarks.page_cpu [--seconds 40] [--paints 5] [--model smollm2-135m]

The page is launched as app.py does, in this process. Chromium opens it in a new profile each time, after one visit that
warms the server up (Chromium's own paint timing). Then a run trains as a process of its own, a prompt is streamed
again and again, and every tab is looked at in turn. An update is one answer of one event (of a stream: one item); its
cost is the CPU time of its handler's thread plus that of the event loop for it, so neither what the training takes from
the cores nor the wait for a token is counted; the wall time is shown beside it.
Bars: first contentful paint at most 2 s; an update at most 100 ms of CPU time.
"""

import argparse
import functools
import inspect
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from finetune.config import preset, with_settings
from finetune.job import start_training
from inference.engine import Engine
from inference.server import routes
from studio.access import keep_uploads_private, settle
from studio.blocks import CSS, build
from studio.theme import theme

RESULTS = Path(__file__).parent / "results" / "page_cpu.json"
PAINT_BAR, UPDATE_BAR = 2000.0, 100.0  # milliseconds
TABS = ["Fine-tune", "Evaluate", "Runs", "Compare"]
TAB_SECONDS = 3.0
PROMPT = "Write a long story about a bird that learns to sing."
FIGURES = ("median_ms", "p95_ms", "max_ms", "median_wall_ms", "max_wall_ms")
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--paints", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TANDEM_RUNS"] = folder
        _make_adapter(args.model)
        result = _measure(args.model, args.seconds, args.paints)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def _measure(model: str, seconds: float, paints: int) -> dict[str, Any]:
    meter, load = Meter(), os.getloadavg()[0]
    with _served(meter) as address, _chromium() as browser:
        _visit(browser, address)
        idle = [_visit(browser, address) for _ in range(paints)]
        with _training(model):
            busy = [_visit(browser, address) for _ in range(paints)]
            meter.start()
            _live(browser, address, seconds)
            updates = meter.table()
    first_paint = {"idle_ms": idle, "median_idle_ms": statistics.median(idle), "while_training_ms": busy}
    worst = max(update["max_ms"] for update in updates)
    return {
        "hardware": f"{platform.machine()}, {psutil.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("gradio", "torch", "transformers", "bitsandbytes")}
        | {"python": platform.python_version(), "browser": browser.version},
        "load_before": load,  # of what else the machine was doing
        "model": model,
        "first_paint": first_paint,
        "updates": updates,
        "worst_update_ms": worst,
        "bars": {"first_paint_ms": PAINT_BAR, "update_ms": UPDATE_BAR},
        "holds": max(idle) <= PAINT_BAR and worst <= UPDATE_BAR,
    }


class Meter:
    """CPU and wall time of every update of a page: [handler][update] = (CPU ms, wall ms)."""

    def __init__(self) -> None:
        self._spent: ContextVar[list[float] | None] = ContextVar("spent", default=None)
        self._updates: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def start(self) -> None:
        self._updates.clear()

    def table(self) -> list[dict[str, Any]]:
        """One row a handler, the dearest first."""
        rows = []
        for name, updates in self._updates.items():
            cpu, wall = (sorted(values) for values in zip(*updates, strict=True))
            at = min(len(cpu) - 1, int(0.95 * len(cpu)))
            rows.append(
                {"handler": name, "updates": len(cpu), "median_ms": statistics.median(cpu), "p95_ms": cpu[at]}
                | {"max_ms": cpu[-1], "median_wall_ms": statistics.median(wall), "max_wall_ms": wall[-1]}
            )
        return sorted(rows, key=lambda row: -row["max_ms"])

    def attach(self, page: Any) -> None:
        """Measure that page's handlers and what Gradio does around them."""
        for block_fn in page.fns.values():
            if block_fn.fn is not None:
                block_fn.fn = self._handler(block_fn.fn)
        process = page.process_api

        async def measured(block_fn: Any, *args: Any, **kwargs: Any) -> Any:
            spent = [0.0]
            self._spent.set(spent)
            started = time.perf_counter()
            try:
                return await Stepped(process(block_fn, *args, **kwargs), spent)
            finally:
                wall = (time.perf_counter() - started) * 1000
                self._updates[_name(block_fn.fn)].append((spent[0] * 1000, wall))

        page.process_api = measured

    @contextmanager
    def _counted(self) -> Iterator[None]:
        spent, started = self._spent.get(), time.thread_time()
        try:
            yield
        finally:
            if spent:
                spent[0] += time.thread_time() - started

    def _handler(self, function: Any) -> Any:
        @functools.wraps(function)
        def once(*args: Any, **kwargs: Any) -> Any:
            with self._counted():
                return function(*args, **kwargs)

        @functools.wraps(function)
        def many(*args: Any, **kwargs: Any) -> Any:
            items = function(*args, **kwargs)
            try:
                while True:
                    with self._counted():
                        item = next(items, self)
                    if item is self:
                        return
                    yield item
            finally:
                items.close()

        return many if inspect.isgeneratorfunction(function) else once


class Stepped:
    """A coroutine whose own steps on the event loop are timed; while it waits, others are at work there."""

    def __init__(self, coroutine: Any, spent: list[float]) -> None:
        self._coroutine, self._spent = coroutine, spent

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        step, given = inner.send, None
        while True:
            started = time.thread_time()
            try:
                waits_for = step(given)
            except StopIteration as end:
                return end.value
            finally:
                self._spent[0] += time.thread_time() - started
            try:
                step, given = inner.send, (yield waits_for)
            except BaseException as error:  # what was waited for failed, or the event was cancelled: its own affair
                step, given = inner.throw, error


def _name(function: Any) -> str:
    whole = inspect.unwrap(function) if function else None
    return f"{whole.__module__}.{whole.__qualname__}" if whole else "none"


@contextmanager
def _served(meter: Meter) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    access = settle(["--port", port])
    keep_uploads_private()
    engine = Engine()
    page = build(engine).queue(max_size=64)
    meter.attach(page)
    page.launch(theme=theme(), css=CSS, quiet=True, prevent_thread_lock=True, **access.launch(routes(engine)))
    yield access.address()
    page.close(verbose=False)


@contextmanager
def _chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def _opened(browser: Browser, address: str) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.goto(address)
    page.wait_for_selector("#prompt textarea", timeout=60_000)
    return page


def _visit(browser: Browser, address: str) -> float:
    """First contentful paint in milliseconds, in a new profile."""
    page = _opened(browser, address)
    paint = float(page.evaluate(PAINT))
    page.context.close()
    return paint


def _live(browser: Browser, address: str, seconds: float) -> None:
    """A person at work: a prompt that streams, and every tab in turn."""
    page = _opened(browser, address)
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        page.get_by_role("tab", name=TABS[turn % len(TABS)]).click()
        if TABS[turn % len(TABS)] == "Compare" or not turn:
            page.get_by_role("tab", name="Compare").click()
            page.fill("#prompt textarea", PROMPT)
            page.keyboard.press("Enter")
        page.wait_for_timeout(TAB_SECONDS * 1000)
        turn += 1
    page.context.close()


def _make_adapter(model: str) -> None:
    """A finished run, so that base and tuned stand side by side."""
    settings = ["--model", model, "--rows", "60", "--steps", "2", "--validation-rows", "4"]
    command = [sys.executable, "-m", "finetune", "train", "--preset", "quick-demo", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def _training(model: str) -> Iterator[None]:
    run = start_training(with_settings(preset("quick-demo"), {"model": model, "steps": 100_000}), "load")
    try:
        while run.status().get("step", 0) < 1:
            assert run.is_alive(), run.log_tail()
            time.sleep(0.2)
        yield
        assert run.is_alive(), "the run ended before the measurement did"
    finally:
        run.request_stop()
        while run.is_alive():
            time.sleep(0.2)


def _print(result: dict[str, Any]) -> None:
    paint = result["first_paint"]
    print(f"first paint {paint['median_idle_ms']:.0f} ms (worst {max(paint['idle_ms']):.0f}, bar {PAINT_BAR:.0f}), ")
    print(f"while a run trains: worst {max(paint['while_training_ms']):.0f} ms\n")
    print(f"{'update':58}{'n':>6}{'median':>9}{'p95':>9}{'max':>9}{'wall':>9}{'max':>9}   ms, bar {UPDATE_BAR:.0f}")
    for u in result["updates"]:
        figures = "".join(f"{u[key]:9.1f}" for key in FIGURES)
        print(f"{u['handler'][-57:]:58}{u['updates']:6}{figures}")
    print("holds" if result["holds"] else "does not hold")


if __name__ == "__main__":
    main()
