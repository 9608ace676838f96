"""What is measured: each score's name, which way is better, and what it is taken over. Nothing here loads a library."""

from dataclasses import dataclass
from typing import Literal

SHORT_ANSWERS = frozenset({"closed_qa", "information_extraction", "classification"})


@dataclass(frozen=True)
class Measure:
    """One score.

    Attributes:
        key: its name in files and in --metrics.
        name: its name for people.
        higher_is_better: None where neither way is better.
        source: what it is taken from: how likely the references are, what was answered, or what a judge makes of that.
        headline: whether the verdict speaks of it.
        categories: the categories that it means something on; None is all.
        weight: an example counts once, or by its reference's tokens or bytes.
    """

    key: str
    name: str
    higher_is_better: bool | None
    source: Literal["likelihood", "answers", "judge"] = "answers"
    headline: bool = False
    categories: frozenset[str] | None = None
    weight: Literal["examples", "tokens", "bytes"] = "examples"

    def applies(self, category: str) -> bool:
        return self.categories is None or category in self.categories


MEASURES = {
    measure.key: measure
    for measure in (
        Measure("loss", "response loss", False, "likelihood", headline=True, weight="tokens"),
        Measure("loss_by_example", "response loss by example", False, "likelihood"),
        Measure("bits_per_byte", "bits per byte", False, "likelihood", weight="bytes"),
        Measure("rouge_1", "ROUGE-1", True),
        Measure("rouge_2", "ROUGE-2", True),
        Measure("rouge_l", "ROUGE-L", True, headline=True),
        Measure("bleu", "BLEU", True),
        Measure("chrf", "chrF", True, headline=True),
        Measure("token_f1", "token F1", True, categories=SHORT_ANSWERS),
        Measure("exact_match", "exact match", True, headline=True, categories=SHORT_ANSWERS),
        Measure("length_ratio", "length ratio", None),
        Measure("stopped", "stopped by itself", True, headline=True),
        Measure("repetition", "repeated 4-grams", False),
        Measure("similarity", "semantic similarity", True, headline=True),
        Measure("judge", "judge's preference", True, "judge", headline=True),
    )
}


def chosen_measures(names: str) -> list[Measure]:
    """The measures of a comma-separated list, or of "all". Raises ValueError with the known names."""
    if names.strip() == "all":
        return list(MEASURES.values())
    asked = [name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in MEASURES]
    if unknown or not asked:
        raise ValueError(f"There is no metric {', '.join(unknown) or names!r}; there are: all, {', '.join(MEASURES)}.")
    return [measure for key, measure in MEASURES.items() if key in asked]
