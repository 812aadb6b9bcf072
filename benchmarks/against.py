"""Two trees in turn: what the new one's ops, planner and forwards take, over the old one's.

Each tree runs its own `overhead.py` and `overlap.py`, because import paths differ between trees.
This script reads the figures that both write. Each planner runs from its tree's wheel, as users
have it. The trees take turns, and change who is first. Of each measurement the lowest round counts,
because other work only adds.

The overlap is a forward over its ideal bound of the same round: two ranks, prefetch step 1, a fetch
of half the compute. Its smoke is too short: a moved byte is lost in what the system oversleeps.

Run: make bench-against REV=COMMIT; or python benchmarks/against.py OLD_TREE NEW_TREE. It needs the
network once, for the planner's dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_start import install
from result import publish

MOST = 1.05
ROUNDS = 9
RACE = ("--ranks", "2", "--steps", "1", "--ratios", "0.5", "--rounds", "3")
EVERY = 3
"""A race has three rounds, so one turn of three has one."""

STARTS = 5
"""Of the planner in a round: one takes a tenth of a second."""

PLAN = ("plan", "--model", "DeepSeek-V3")
MOVERS = {"broadcasts": "/ bound", "keep_first": "keep_first / bound", "pulls": "pull / bound"}
"""Of a forward, and the column of `overlap.py` that has its time over its bound."""

Measured = dict[str, float]
Rounds = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout, and a virtual environment that has its planner alone."""

    path: Path
    environment: Path

    def planner(self, turn: int) -> Measured:
        """Seconds of CPU time that the planner takes to answer; the first turn installs it."""
        if turn == 0:
            venv.create(self.environment, with_pip=True)
            install(self.environment, self.path)
        command = [str(self.environment / "bin" / "layershard"), *PLAN]
        return {
            f"layershard plan{form}, CPU s": min(
                cpu_seconds([*command, *form.split()]) for _ in range(STARTS)
            )
            for form in ("", " --json")
        }

    def overhead(self, _: int) -> Measured:
        """Microseconds of a `reach` and a `wait`."""
        (row,) = self._rows("overhead")
        return {"reach and wait, us": row["low_us"]}

    def overlap(self, turn: int) -> Measured:
        """The lowest of a race's forwards over its bound, for each way to move."""
        if turn % EVERY:
            return {}
        (row,) = self._rows("overlap", *RACE)
        return {f"forward / bound, {name}": row[f"{column} low"] for name, column in MOVERS.items()}

    def _rows(self, benchmark: str, *options: str) -> list[dict[str, Any]]:
        """What the tree's own benchmark measures of it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "found.json")
            command = [sys.executable, f"benchmarks/{benchmark}.py", *options, "--json", str(file)]
            environment = os.environ | {"PYTHONPATH": str(self.path)}
            subprocess.run(command, check=True, capture_output=True, cwd=self.path, env=environment)
            rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
        return rows


MEASURES: dict[str, Callable[[Tree, int], Measured]] = {
    "planner": Tree.planner,
    "overhead": Tree.overhead,
    "overlap": Tree.overlap,
}


def cpu_seconds(command: list[str]) -> float:
    """CPU time of one whole process: what it waits for a core does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=tempfile.gettempdir())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compared(old: Rounds, new: Rounds) -> list[dict[str, Any]]:
    """A row for each measurement: the lowest round of each tree, and new over old."""
    return [
        {
            "measured": name,
            "old": round(min(values), 4),
            "new": round(min(new[name]), 4),
            "ratio": round(min(new[name]) / min(values), 3),
            "rounds": {"old": values, "new": new[name]},
        }
        for name, values in old.items()
    ]


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Where the new tree takes longer than is allowed."""
    return [
        f"{row['measured']}: {row['ratio']} of the old tree's, at most {MOST:g}"
        for row in rows
        if row["ratio"] > MOST
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=[*MEASURES])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--check", action="store_true", help=f"fail where a ratio is above {MOST}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Tree(options.old.resolve(), Path(folder, "old"))
        new = Tree(options.new.resolve(), Path(folder, "new"))
        found: dict[Tree, Rounds] = {old: {}, new: {}}
        for turn in range(options.rounds):
            for tree in (new, old) if turn % 2 else (old, new):
                for measure in (MEASURES[name] for name in options.only):
                    for key, value in measure(tree, turn).items():
                        found[tree].setdefault(key, []).append(value)
            print(f"against: round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    rows = compared(found[old], found[new])
    publish("against", "Two trees in turn", ["measured", "old", "new", "ratio"], rows, options.json)
    missed = misses(rows)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
