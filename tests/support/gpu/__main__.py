"""The command: `python3 -m gpu tests` or `python3 -m gpu bench`, from the root of the tree.

Rows go to stdout (and to `--rows FILE`), a line for people to stderr. It exits with 1 if a part
failed, if there was no time for one, or if there is no CUDA device. Parts that need more GPUs than
there are count as not run, and change nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gpu.facts import asked
from gpu.part import parts_of
from gpu.runner import Runner
from gpu.table import MODULES


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("what", choices=MODULES)
    parser.add_argument("--rows", type=Path, help="write the rows to this file, too")
    parser.add_argument("--only", default="", help="only parts whose name has this text in it")
    options = parser.parse_args()
    machine = asked()
    with (options.rows or Path("/dev/null")).open("w") as file:

        def write(row: dict[str, Any]) -> None:
            line = json.dumps(row, default=str)
            for stream in (sys.stdout, file):
                print(line, file=stream, flush=True)
            if "outcome" in row:
                words = [row["outcome"], row["part"], row.get("case", ""), row.get("why", "")]
                shown = ": ".join(filter(None, words)).splitlines()[0]
                print(f"gpu: {shown[:300]}", file=sys.stderr, flush=True)

        write({"machine": machine, "run": options.what})
        runner = Runner(write, len(machine["gpus"]))
        modules, prefix = MODULES[options.what]
        runner.run(
            part
            for part in parts_of(modules, prefix)
            if options.only in getattr(part, "name", part.module)
        )
        counts = {kind: runner.tally[kind] for kind in ("passed", "failed", "not run")}
        write({"run": options.what, "counts": counts})
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    no_device = "" if machine["gpus"] else "; needs a CUDA device, and this machine has none"
    print(f"gpu {options.what}: {said}{no_device}", file=sys.stderr)
    return int(bool(runner.tally["failed"] or runner.lacked_time or no_device))


if __name__ == "__main__":
    sys.exit(main())
