"""Answers from one resident 4-bit base, any number of columns (base, tuned, in between) in one pass."""
