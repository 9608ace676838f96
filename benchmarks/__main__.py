"""python -m benchmarks [--data ROWS]: every CPU benchmark, one after the other, each in a process of its own."""

import argparse
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a file of Dolly rows, for the benchmarks of training")
    data = parser.parse_args().data
    commands = [["memory_cpu"], ["compare_cpu"], ["evaluate_cpu"], ["page_cpu"]]
    if data:
        commands += [["train_cpu", "--data", data], ["time_cpu", "--data", data]]
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rest]).returncode for name, *rest in commands
    )


if __name__ == "__main__":
    sys.exit(main())
