"""What the store keeps, for whom, and from how many threads."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluation.votes import Entrant, Vote
from studio.conversation import Conversation, Exchange, Said, Side
from studio.store import Store

NASTY = "'); DROP TABLE conversations; -- \x00 <b>\nsecond line"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "kept.sqlite")


def talk(prompt: str, *answers: str) -> Conversation:
    said = tuple(Said(text=text, tokens=3, stop="end") for text in answers)
    return Conversation(exchanges=(Exchange(prompt=prompt, answers=said),))


def test_a_conversation_comes_back_as_it_was(store: Store) -> None:
    first, second = talk(NASTY, "a", NASTY), talk("Second", "b", "c")
    store.keep("ann", first)
    store.keep("ann", second)
    assert [kept.id for kept in store.listed("ann")] == [second.id, first.id]
    assert store.listed("ann")[1].title.startswith("'); DROP TABLE") and "\n" not in store.listed("ann")[1].title
    longer = first.model_copy(update={"exchanges": first.exchanges * 2})
    store.keep("ann", longer)
    assert Store(store.file).find("ann", first.id) == longer  # by another program start, too
    assert [kept.id for kept in store.listed("ann")] == [first.id, second.id]
    store.rename("ann", first.id, " A better\nname ")
    store.keep("ann", longer)
    assert store.title("ann", first.id) == "A better name"
    store.delete("ann", first.id)
    assert [kept.id for kept in store.listed("ann")] == [second.id]
    with pytest.raises(ValueError, match="no conversation behind this link"):
        store.find("ann", first.id)


def test_people_see_only_their_own(store: Store) -> None:
    mine = talk("Mine", "a")
    store.keep("ann", mine)
    assert store.listed("bob") == [] and store.title("bob", mine.id) is None
    with pytest.raises(ValueError, match="not among yours"):
        store.rename("bob", mine.id, "x")
    with pytest.raises(ValueError, match="not among yours"):
        store.delete("bob", mine.id)
    copy = store.find("bob", mine.id)  # he was given the link
    assert copy.id != mine.id and copy.exchanges == mine.exchanges
    store.keep("bob", copy.model_copy(update={"id": mine.id, "exchanges": ()}))
    assert store.find("ann", mine.id) == mine and store.listed("bob") == []


def test_twenty_at_once_lose_nothing(store: Store) -> None:
    def person(number: int) -> None:
        for turn in range(5):
            store.keep(f"p{number}", talk(f"{number} asks {turn}", "a"))
            assert all(kept.title.startswith(f"{number} asks") for kept in store.listed(f"p{number}"))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(person, range(20)))
    for number in range(20):
        titles = {kept.title for kept in store.listed(f"p{number}")}
        assert titles == {f"{number} asks {turn}" for turn in range(5)}


def test_a_vote_counts_once(store: Store) -> None:
    asked = talk("Which?", "a", "b")
    columns = (Entrant(None, "base", 1.0, "m"), Entrant("run-1", "tuned", 0.5, "m"))
    vote = Vote(columns, (1, 0), "A", asked.id, 0, 12.5, "ann")
    assert store.vote(vote, asked)
    assert not store.vote(vote._replace(choice="B", time=13.0), asked)
    assert store.votes() == [vote] and store.votes()[0].winner == columns[1]
    answered_again = talk("Which?", "a", "something else")
    assert store.vote(vote._replace(choice="bad", time=14.0), answered_again)
    assert [v.choice for v in store.votes()] == ["A", "bad"]


def test_files_of_others(store: Store, runs: Path) -> None:
    assert Store().file == runs / ".tandem.sqlite"
    store.keep("ann", talk("x"))
    assert store.file.stat().st_mode & 0o077 == 0  # talks are nobody else's business on this machine
    with sqlite3.connect(store.file) as base:
        base.execute("UPDATE conversations SET value = '{\"other\": 1}'")
    with pytest.raises(ValueError, match="another version"):
        store.find("ann", store.listed("ann")[0].id)
    with sqlite3.connect(store.file) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="newer Tandem"):
        Store(store.file).listed("ann")


def test_sides_and_settings_survive(store: Store) -> None:
    sides = (Side(run="r", name="checkpoint-4", strength=0.35), Side(), Side(run="r", name="merged"))
    kept = Conversation(sides=sides, blind=True, order=(2, 0, 1))
    store.keep("ann", kept)
    assert store.find("ann", kept.id) == kept
