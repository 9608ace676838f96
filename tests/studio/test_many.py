"""Twenty people at once, each with a question and a column of their own, on the real server."""

import threading
from typing import Any

from conftest import App
from gradio_client import Client

PEOPLE = 20
TOKENS = 24
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
    waited = [items for items in together.values() if "ahead of you" in str(items)]
    assert len(waited) > PEOPLE // 2
    for items in waited:  # nobody falls behind in the queue
        places = [int(item["message"].split()[4]) for item in items if "ahead of you" in item["message"]]
        assert places == sorted(places, reverse=True) and places[0] < PEOPLE
