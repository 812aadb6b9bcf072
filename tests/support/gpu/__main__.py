"""The command: `python3 -m gpu tests` or `python3 -m gpu bench`, from the root of the tree.

Rows go to stdout (and to `--rows FILE`), a line for people to stderr. It exits with 1 if a part
failed, if there was no time for one, if a signal ended the run, if rows were lost, or if there is
no CUDA device; with 2 if nothing was run, since what was asked for cannot be. Parts that need more
GPUs than there are count as not run, and change nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpu import BEGAN_S
from gpu.facts import asked, how_many_gpus
from gpu.output import Output
from gpu.part import Part, Unread, parts_of
from gpu.runner import Clock, Runner
from gpu.stopping import Stopping
from gpu.table import MODULES


def main(began_s: float | None = None, clock: Clock = time) -> int:
    """The exit status. The minutes count from `began_s` of the clock; None: from now."""
    began_s = clock.monotonic() if began_s is None else began_s
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("what", choices=MODULES)
    parser.add_argument("--rows", type=Path, help="write the rows to this file, too")
    parser.add_argument("--only", default="", help="only parts whose name has this text in it")
    options = parser.parse_args()
    parts = [*parts_of(*MODULES[options.what])]
    wanted = [part for part in parts if options.only in _name(part)]
    if not wanted:
        names = "\n  ".join(map(_name, parts))
        return _refused(f"--only {options.only}: no part has this in its name:\n  {names}")
    with Stopping() as stopping, ExitStack() as held:
        try:
            output = Output(options.rows)
            held.callback(output.close)
            machine = asked(stopped=stopping)
            output.first({"machine": machine, "run": options.what})
        except OSError as error:
            return _refused(f"--rows {options.rows}: {error.strerror}; name a file to be written")
        runner = Runner(
            _writing(output),
            how_many_gpus(machine),
            clock=clock,
            stopped=lambda: stopping.by,
            began_s=began_s,
        )
        runner.run(wanted)
        return _summed_up(options.what, runner, machine, output, stopping)


def _writing(output: Output) -> Callable[[dict[str, Any]], None]:
    def write(row: dict[str, Any]) -> None:
        output.row(row)
        if "outcome" in row:
            words = [row["outcome"], row["part"], row.get("case", ""), row.get("why", "")]
            output.say(": ".join(filter(None, words)).splitlines()[0][:300])

    return write


def _summed_up(
    what: str,
    runner: Runner,
    machine: dict[str, Any],
    output: Output,
    stopping: Stopping,
) -> int:
    gpus = how_many_gpus(machine)
    counts = {kind: runner.tally[kind] for kind in ("passed", "failed", "not run")}
    ended = {"stopped": stopping.by} if stopping.by else {}
    output.row({"run": what, "counts": counts} | ended)
    said = [", ".join(f"{count} {kind}" for kind, count in counts.items())]
    if stopping.by:
        said.append(f"ended by {stopping.by}")
    if gpus == 0:
        said.append("needs a CUDA device, and this machine has none")
    elif gpus is None:
        said.append(f"its devices are not known: {machine.get('failed') or machine['gpus']}")
    output.say(f"{what}: {'; '.join(said)}")
    bad = runner.tally["failed"] or runner.lacked_time or stopping.by or output.lost or gpus == 0
    return int(bool(bad))


def _name(part: Part | Unread) -> str:
    return part.name if isinstance(part, Part) else part.module


def _refused(why: str) -> int:
    print(f"gpu: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(BEGAN_S))
