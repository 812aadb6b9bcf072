"""A sharded server under load for a while: right answers, and nothing that grows.

Every few seconds the memory, the open files and the shared memory of all its processes are noted.
After a warm-up, the last quarter of the run is held against the first: medians, so that a burst is
no growth. Requests alternate between both ranks, one rank alone, and streams that are cut off.
Run: make soak (20 minutes; MINUTES=1 for a try)
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from openai import OpenAIError

from recital import model_path
from serving.answers import ask
from serving.processes import Footprint, footprint
from serving.questions import questions
from serving.server import Server
from serving.streams import cut_off

SHARDING = {"layers": ["o_proj", "q_b_proj", "shared_experts.down_proj"]}
SAMPLE_S = 5.0
WARM_UP = 0.2
"""Of the whole time: allocators and caches fill."""

FEW_BLOCKS = ("--num-gpu-blocks-override", "40")
"""A small KV cache is touched whole in the warm-up; the pages of a large one grow for long."""

NO_KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "1"}
"""oneDNN keeps a kernel for each shape that it meets: a growth of its own, sharded or not."""

GROWN_SHARE = 0.01
GROWN_BYTES = 8 << 20
"""Memory has grown if both are exceeded; files and shared memory, if they grew at all."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Medians of the first and the last quarter after the warm-up, over all processes."""

    what: str
    first: float
    last: float
    allowed: float

    @property
    def grown(self) -> bool:
        return self.last - self.first > self.allowed


def growths(samples: Sequence[Footprint]) -> list[Growth]:
    """What the samples, taken at equal intervals, say about each resource."""
    kept = samples[int(len(samples) * WARM_UP) :]
    quarter = max(1, len(kept) // 4)
    found = []
    for what in ("memory_bytes", "files", "shared_bytes", "processes"):
        values = [float(getattr(sample, what)) for sample in kept]
        first, last = median(values[:quarter]), median(values[-quarter:])
        allowed = max(GROWN_BYTES, GROWN_SHARE * first) if what == "memory_bytes" else 0.0
        found.append(Growth(what, first, last, allowed))
    return found


def soak(server: Server, prompts: list[list[int]], seconds: float) -> tuple[list[Footprint], int]:
    """The footprints, and how many answers were given.

    Raises:
        AssertionError: an answer differs from the first one to the same question.
    """
    samples: list[Footprint] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            samples.append(footprint(server.groups))

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = 0
    try:
        expected = ask(server, prompts)
        deadline = time.monotonic() + seconds
        for turn in itertools.count():
            if time.monotonic() > deadline:
                break
            given = ask(server, prompts, rank=(None, 0, 1)[turn % 3])
            assert [a.token_ids for a in given] == [a.token_ids for a in expected], "answers differ"
            answers += len(given)
            cut_off(server, prompts[:4])
    finally:
        over.set()
        watcher.join()
    return samples, answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = model_path()
    prompts = questions(model)
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(
            model,
            Path(scratch, "log"),
            sharding=SHARDING,
            arguments=FEW_BLOCKS,
            environment=NO_KERNEL_CACHES,
            api_servers=None,
        )
        with server:
            try:
                samples, answers = soak(server, prompts, options.minutes * 60)
            except (AssertionError, OpenAIError) as error:
                print(f"{server.log_text()[-8000:]}\n{type(error).__name__}: {error}")
                return 1
    found = growths(samples)
    print(f"{answers} answers in {options.minutes:g} minutes, all equal; {len(samples)} samples")
    for growth in found:
        verdict = "GROWN" if growth.grown else "steady"
        print(f"{growth.what:>14}: {growth.first:,.0f} -> {growth.last:,.0f}  {verdict}")
    if options.json:
        document = {
            "benchmark": "soak",
            "minutes": options.minutes,
            "answers": answers,
            "growth": [asdict(growth) | {"grown": growth.grown} for growth in found],
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(growth.grown for growth in found) else 0


if __name__ == "__main__":
    sys.exit(main())
