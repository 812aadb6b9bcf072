"""What a client sees of sharded servers beside the replicated one, by `vllm bench serve`.

Throughput, time to the first token and between tokens, of the same random requests to servers that
are asked in turn, round after round: replicated, with broadcasts, with pulls. All run all the time,
and whoever is not asked is idle. On a CPU what moves takes from the cores that compute, and the
model is small, so that what is measured is the overhead, not what a GPU would hide.
Run: PYTHONPATH=tests/support python benchmarks/serve.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from result import Times, publish

from recital import model_path
from serving.server import Server

LAYERS = ["o_proj", "q_b_proj"]
SHARDED = {name: {"layers": LAYERS, "transport": name} for name in ("broadcast", "pull")}
SERVERS: dict[str, Any] = {"replicated": None, **SHARDED}
MEASURED = {
    "output_throughput": "tokens_s",
    "median_ttft_ms": "ttft_ms",
    "median_itl_ms": "itl_ms",
}


def asked(server: Server, folder: Path, requests: int) -> dict[str, float]:
    """What `vllm bench serve` says after so many requests, eight at a time."""
    command = [
        str(Path(sys.executable).with_name("vllm")), "bench", "serve",
        "--backend", "vllm",
        "--base-url", server.url,
        "--model", str(server.model),
        "--served-model-name", "model",
        "--dataset-name", "random",
        "--random-input-len", "64",
        "--random-output-len", "64",
        "--ignore-eos",
        "--seed", "0",
        "--num-prompts", str(requests),
        "--num-warmups", "8",
        "--max-concurrency", "8",
        "--disable-tqdm",
        "--save-result", "--result-dir", str(folder), "--result-filename", "found.json",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "found.json").read_text())
    assert found["completed"] == requests, found
    return {ours: found[theirs] for theirs, ours in MEASURED.items()}


def rows_of(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each server, and one for each sharded over replicated, round by round."""
    ratios = {}
    for name in SHARDED:
        pairs = zip(found[name], found["replicated"], strict=True)
        ratios[f"{name} / replicated"] = [{key: a[key] / b[key] for key in a} for a, b in pairs]
    rows = []
    for name, values in (found | ratios).items():
        row: dict[str, Any] = {"server": name, "rounds": len(values)}
        for key in MEASURED.values():
            times = Times.of([value[key] for value in values])
            row |= {key: round(times.median, 3), f"{key}_low": round(times.low, 3)}
            row |= {f"{key}_high": round(times.high, 3)}
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args()
    model = model_path()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SERVERS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        servers = {
            name: running.enter_context(
                Server(model, Path(folder, f"{name}.log"), sharding=value, api_servers=None)
            )
            for name, value in SERVERS.items()
        }
        for turn in range(options.rounds + 1):
            for name, server in servers.items():
                one = asked(server, Path(folder), options.requests)
                if turn:  # the first round warms up
                    found[name].append(one)
    rows = rows_of(found)
    columns = [column for column in rows[0] if column != "rounds"]
    publish("serve", "Sharded and replicated, as a client sees them", columns, rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
