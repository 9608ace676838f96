"""QLoRA fine-tuning of a 4-bit causal language model: rows in, adapter out. Run it: python -m finetune train."""
