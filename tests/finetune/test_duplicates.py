import random
import time
from pathlib import Path

from finetune.config import Holdout
from finetune.data import Row, load_rows, normalized, split_rows
from finetune.duplicates import near_duplicates, repeated, shingles


def row(instruction: str, context: str = "") -> Row:
    return Row(instruction, context, "Answer.", "x")


def test_shingles_by_hand() -> None:
    assert shingles("a b c d a b c") == {("a", "b", "c"), ("b", "c", "d"), ("c", "d", "a"), ("d", "a", "b")}
    assert shingles("a b") == {("a", "b")}
    assert shingles("") == set()


def test_repeated_prompts_are_counted_after_the_first() -> None:
    rows = [row("What is  HONEY?"), row("what is honey"), row("What is honey?", "food"), row("What, is honey!")]
    assert repeated(rows) == 2


def test_similarity_by_hand_at_the_threshold() -> None:
    # Eleven words are nine shingles. Without the last word eight of nine are shared; with x before, eight of ten.
    words = "a b c d e f g h i j k"
    train = [row("q r s t"), row("x " + words[: -len(" k")]), row(words[: -len(" k")])]
    found = near_duplicates(train, [row(words)])
    assert [(pair.train, pair.held_out, round(pair.similarity, 4)) for pair in found] == [
        (train[2], row(words), 0.8889)
    ]
    (pair,) = near_duplicates(train[:2], [row(words)])
    assert pair.train == train[1] and pair.similarity == 0.8
    assert not near_duplicates(train[:2], [row(words)], threshold=0.81)
    assert not near_duplicates(train, [row("?!"), row("z")])  # a prompt without a word has no twin


def test_the_index_finds_what_comparing_all_finds() -> None:
    dice = random.Random(0)
    base = [[str(dice.randrange(30)) for _ in range(dice.randrange(2, 25))] for _ in range(60)]

    def variant() -> Row:
        words = list(dice.choice(base))
        for _ in range(dice.randrange(3)):
            words[dice.randrange(len(words))] = str(dice.randrange(30))
        return row(" ".join(words))

    train, held_out = [variant() for _ in range(200)], [variant() for _ in range(100)]
    sets = [shingles(normalized(r)) for r in train]
    for threshold in (0.5, 0.8, 1.0):
        best = {}
        for at, r in enumerate(held_out):
            own = shingles(normalized(r))
            most = max(len(own & other) / len(own | other) for other in sets)
            if most >= threshold:
                best[at] = most
        found = near_duplicates(train, held_out, threshold)
        assert sorted(pair.similarity for pair in found) == sorted(best.values())
        assert len(found) > 5


def test_real_dolly_in_seconds(dolly_rows: Path) -> None:
    rows = load_rows(str(dolly_rows)).rows
    split = split_rows(rows, Holdout())
    started = time.process_time()
    found = near_duplicates(split.train, split.test)
    assert time.process_time() - started < 10
    assert 10 < len(found) < 200 and found[0].similarity > 0.95 and found[-1].similarity >= 0.8
    assert len({pair.held_out for pair in found}) <= len(found) <= len(split.test)
    assert repeated(rows) == 196
