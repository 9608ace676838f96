"""Many people at once on the real server: nothing is lost or crossed, everyone is told the place, no one takes all."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import App
from gradio_client import Client

from finetune.run import create_job
from studio import guard
from studio.limits import Brake, Limits

PEOPLE = 20
TOKENS = 16
COLUMNS = ["base", "tuned", "0.5", "base,tuned", "tuned,base,0.25"]


def ask(client: Client, person: int) -> list[Any]:
    """Every item of that person's stream."""
    job = client.submit(
        prompt=f"What does number {person} like about gardens?",
        columns=COLUMNS[person % len(COLUMNS)],
        max_new_tokens=TOKENS,
        api_name="/compare",
    )
    return list(job)


def said(items: list[Any]) -> list[tuple[str, str, str]]:
    return [(a["column"], a["text"], a["stop"]) for a in items[-1]["answers"]]


def test_twenty_people_get_their_own_answers_and_their_place(small_app: App) -> None:
    clients = [Client(small_app.address, verbose=False) for _ in range(PEOPLE)]
    alone = [said(ask(client, person)) for person, client in enumerate(clients)]
    assert len({str(answers) for answers in alone}) == PEOPLE  # so that a crossed answer would show
    together: dict[int, list[Any]] = {}

    def one(person: int) -> None:
        together[person] = ask(clients[person], person)

    threads = [threading.Thread(target=one, args=(person,)) for person in range(PEOPLE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [said(together[person]) for person in range(PEOPLE)] == alone
    waited = [items for items in together.values() if " ahead" in str(items)]
    assert len(waited) > PEOPLE // 2
    for items in waited:  # nobody falls behind in the queue
        places = [int(item["message"].split()[4]) for item in items if " ahead" in item["message"]]
        assert places == sorted(places, reverse=True) and places[0] < PEOPLE


def test_one_person_has_two_answers_under_way(small_app: App) -> None:
    client, other = Client(small_app.address, verbose=False), Client(small_app.address, verbose=False)
    long = {"prompt": "Tell a story.", "max_new_tokens": 1500, "api_name": "/compare"}
    jobs = [client.submit(**long) for _ in range(2)]
    for job in jobs:
        next(iter(job))
    with pytest.raises(Exception, match="2 of your answers are under way already"):
        client.predict(prompt="One more?", api_name="/compare")
    hers = other.submit(prompt="Me too?", max_new_tokens=8, api_name="/compare")
    assert next(iter(hers))["message"] == "Waiting for the model, 2 ahead"
    for job in jobs:
        job.cancel()
    assert hers.result(20)["answers"][0]["stop"] == "length"
    assert client.predict(prompt="And now?", max_new_tokens=4, api_name="/compare")["answers"]  # they count no more


def test_one_person_has_four_runs_waiting(tmp_path: Path) -> None:
    limits, locks = Limits(starts=6), []

    def make() -> Any:
        job, lock = create_job(tmp_path, "mine", {})
        locks.append(lock)
        return job

    mine = [limits.start("ann", make) for _ in range(4)]
    with pytest.raises(ValueError, match="4 of your runs wait in the queue"):
        limits.start("ann", make)
    limits.start("bob", make)
    (mine[0].path / "status.json").write_text('{"state": "running"}')
    limits.start("ann", make)
    (mine[1].path / "status.json").write_text('{"state": "finished"}')
    limits.start("ann", make)
    (mine[2].path / "status.json").write_text('{"state": "finished"}')
    with pytest.raises(ValueError, match=r"start the next one in (299|300) s"):
        limits.start("ann", make)
    for lock in locks:
        os.close(lock)


def test_a_brake_lets_go_after_its_time() -> None:
    brake = Brake(2, 0.05)
    brake.hit("a")
    assert brake.wait("a") == 0
    brake.hit("a")
    assert 0 < brake.wait("a") <= 0.05 and brake.wait("b") == 0
    end = brake.wait("a")
    time.sleep(end + 0.01)
    assert brake.wait("a") == 0


def test_v1_gives_one_person_as_many_as_a_comparison_has_columns() -> None:
    done = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await done.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(guarded: guard.Guard, address: str) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost:1")]}
        await guarded(scope | {"client": (address, 1), "query_string": b""}, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    async def main() -> list[int]:
        guarded = guard.Guard(slow)
        asked = [asyncio.create_task(ask(guarded, "a")) for _ in range(guard.MOST_V1)]
        await asyncio.sleep(0)
        refused, other = await ask(guarded, "a"), asyncio.create_task(ask(guarded, "b"))
        done.set()
        return [refused, await other, *await asyncio.gather(*asked), await ask(guarded, "a")]

    with ThreadPoolExecutor(1) as pool:  # the browser's fixture keeps a loop in this thread
        statuses = pool.submit(asyncio.run, main()).result()
    assert statuses == [429, 200, *[200] * guard.MOST_V1, 200]
