"""Whole-process time of `layershard plan`, best and median of several runs.

Run: python benchmarks/cli_start.py [runs]
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "plan as tables": ["plan", "--model", "DeepSeek-V3"],
    "plan as JSON": ["plan", "--model", "DeepSeek-V3", "--json"],
    "version": ["--version"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main(runs: int) -> None:
    beside = str(Path(sys.executable).parent)
    program = shutil.which("layershard", path=beside) or shutil.which("layershard")
    if program is None:
        sys.exit("the layershard command is not installed")
    for name, arguments in COMMANDS.items():
        times = [seconds([program, *arguments]) for _ in range(runs)]
        print(f"{name:16s} best {min(times):.3f} s, median {statistics.median(times):.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
