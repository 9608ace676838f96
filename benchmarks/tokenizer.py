"""A tokenizer for models with random weights, trained in a second on the rows that come with Tandem."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROWS = Path(__file__).resolve().parents[1] / "assets" / "dolly_sample.jsonl"


def byte_level_bpe(vocabulary: int, special: list[str]) -> Tokenizer:
    """Byte-level BPE of at most `vocabulary` tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(ROWS)], trainer)
    return tokenizer
