"""Speed and memory, each beside what it is held against. Run all: python -m benchmarks."""
