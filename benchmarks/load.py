"""From start to ready: seconds and peak memory of a sharded server beside a replicated one.

Both serve the same DeepSeek-V3 of random weights on two data-parallel ranks, in turn, round after
round. The memory is anonymous (files that are mapped do not count), of all processes of the server
together, looked at ten times a second: the highest sum, and that at the end.
Run: PYTHONPATH=tests/support python benchmarks/load.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result import Times, publish

from hosted.wide import wide_model
from recital.tokens import save_tokenizer
from serving.processes import footprint
from serving.server import Server

SHARDING = {"layers": ["o_proj", "q_b_proj"]}
SERVERS: dict[str, Any] = {"replicated": None, "sharded": SHARDING}
SAMPLE_S = 0.1

HEAVY = {
    "num_hidden_layers": 16,
    "hidden_size": 1024,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "q_lora_rank": 1024,
}
"""8 MiB a layer and name: 256 MiB replicated, 160 MiB on a rank that owns half and has two slots"""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one server."""

    seconds: float
    peak_bytes: int
    ready_bytes: int


def start(model: Path, log: Path, sharding: Any) -> Start:
    """Start a server, and stop it when it is ready."""
    server = Server(model, log, sharding=sharding, api_servers=None)
    samples = [0]
    ready = threading.Event()

    def watch() -> None:
        while not ready.wait(SAMPLE_S):
            samples.append(footprint(server.groups).memory_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        with server:
            seconds = time.perf_counter() - started
            ready.set()
            watcher.join()  # what it still looks at must not be a server that ends
            samples.append(footprint(server.groups).memory_bytes)
    finally:
        ready.set()
        watcher.join()
    return Start(seconds, max(samples), samples[-1])


def rows_of(starts: dict[str, list[Start]]) -> list[dict[str, Any]]:
    """A row for each server."""
    rows = []
    for name, found in starts.items():
        row: dict[str, Any] = {"server": name, "rounds": len(found)}
        for key, unit in (("seconds", 1), ("peak_bytes", 1 << 20), ("ready_bytes", 1 << 20)):
            times = Times.of([getattr(one, key) / unit for one in found])
            said = key.replace("_bytes", "_mib")
            row |= {said: round(times.median, 1), f"{said}_low": round(times.low, 1)}
            row |= {f"{said}_high": round(times.high, 1)}
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    starts: dict[str, list[Start]] = {name: [] for name in SERVERS}
    with tempfile.TemporaryDirectory() as folder:
        model = wide_model(Path(folder, "model"), HEAVY)
        save_tokenizer(model)
        for turn in range(options.rounds):
            for name, sharding in SERVERS.items():
                starts[name].append(start(model, Path(folder, f"{name}{turn}.log"), sharding))
    columns = ("server", "seconds", "seconds_low", "seconds_high", "peak_mib", "peak_mib_low",
               "peak_mib_high", "ready_mib")  # fmt: skip
    publish("load", "From start to ready", columns, rows_of(starts), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
