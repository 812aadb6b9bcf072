"""Two replicas under load while workers stop, die and reload: no wrong token, and nothing left.

Every minute a worker stands still for 20 seconds, every five one is killed and the server started
again, and every half minute the weights are reloaded, of which one in ten fails half-way. Both
checkpoints answer alike; a mixture of them does not: the hidden units of each MLP, and of each
head's values, are in another order.
Run: make soak FAULTS=1 (MINUTES=30)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from openai import OpenAIError
from safetensors.torch import load_file, save_file
from soak import NO_KERNEL_CACHES, SAMPLE_S, growths

from recital import model_path
from serving import probe
from serving.answers import ask
from serving.processes import Footprint, footprint, named
from serving.questions import questions
from serving.server import Server
from vllm_layershard.runtime import shared_memory

SHARDING = {"layers": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
SUFFIXES = ("gate_proj", "up_proj", "down_proj", "v_proj", "o_proj")
RANKS = (0, 1)
PERIOD_S = 30.0
"""Of reloads; every second one is preceded by a stop, and every tenth by a kill."""
STOPPED_S = 20.0
FAILING_SHARE = 0.1
END_S = 120.0
SHARED_BYTES = 64 << 10
"""A rank's document on the board is a little longer once it has reloaded."""


def reordered(model: Path, directory: Path) -> Path:
    """A copy of `model` that computes the same with every hidden unit in another place."""
    shutil.copytree(model, directory)
    config = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = load_file(model / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for layer in range(config["num_hidden_layers"]):
        mlp, attention = (f"model.layers.{layer}.{part}." for part in ("mlp", "self_attn"))
        gate, up, down = (f"{mlp}{name}_proj.weight" for name in ("gate", "up", "down"))
        order = torch.randperm(tensors[gate].shape[0], generator=draw)
        for name in (gate, up):
            tensors[name] = tensors[name][order].contiguous()
        tensors[down] = tensors[down][:, order].contiguous()
        value, output = (f"{attention}{name}_proj.weight" for name in ("v", "o"))
        head_dim = tensors[value].shape[0] // kv_heads
        inner = torch.randperm(head_dim, generator=draw)
        rows = torch.cat([head * head_dim + inner for head in range(kv_heads)])
        columns = torch.cat([head * head_dim + inner for head in range(heads)])
        tensors[value] = tensors[value][rows].contiguous()
        tensors[output] = tensors[output][:, columns].contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


class Soak:
    """A server that is asked by two threads, and what has become of it."""

    def __init__(
        self, server: Server, checkpoints: Sequence[Path], prompts: list[list[int]]
    ) -> None:
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lives: list[list[Footprint]] = []
        self._server = server
        self._checkpoints = checkpoints
        self._prompts = prompts
        self._draw = random.Random(1)
        self._expected = [answer.token_ids for answer in ask(server, prompts)]
        self._up, self._over = threading.Event(), threading.Event()
        self._up.set()

    def run(self, seconds: float) -> None:
        """Ask, and disturb, for so long."""
        threads = [threading.Thread(target=self._ask, args=[rank]) for rank in RANKS]
        threads.append(threading.Thread(target=self._watch))
        for thread in threads:
            thread.start()
        started = time.monotonic()
        turn = 0
        while time.monotonic() - started < seconds and not self.faults:
            turn += 1
            if turn % 10 == 0:
                self._kill()
            elif turn % 2 == 0:
                self._stop_one()
            self._reload()
            time.sleep(max(0.0, started + turn * PERIOD_S - time.monotonic()))
        self._over.set()
        self._up.set()
        for thread in threads:
            thread.join(END_S)
            if thread.is_alive():
                self.faults.append(f"{thread.name} hangs")

    def _ask(self, rank: int) -> None:
        while not self._over.is_set():
            self._up.wait()
            index = self._draw.randrange(len(self._prompts))
            try:
                (answer,) = ask(self._server, [self._prompts[index]], rank=rank)
            except OpenAIError as error:
                if self._up.is_set() and not self._over.is_set():
                    time.sleep(1)
                    if self._up.is_set():
                        self.faults.append(f"rank {rank}: {type(error).__name__}: {error}")
                continue
            self.done["answers"] += 1
            if answer.token_ids != self._expected[index]:
                self.faults.append(f"rank {rank}: a wrong answer to question {index}")

    def _watch(self) -> None:
        self.lives.append([])
        while not self._over.wait(SAMPLE_S):
            if self._up.is_set():
                self.lives[-1].append(footprint(self._server.groups))

    def _stop_one(self) -> None:
        worker = self._draw.choice(named("VLLM::Worker", self._server.groups))
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(STOPPED_S, lambda: os.kill(worker, signal.SIGCONT)).start()
        self.done["stops"] += 1

    def _kill(self) -> None:
        self._up.clear()
        os.kill(self._draw.choice(named("VLLM::Worker", self._server.groups)), signal.SIGKILL)
        self._server.wait_for_end(END_S)
        self._server.stop()
        self._server.start()
        self._server.wait_until_ready()
        left = [name for name in shared_memory.names() if shared_memory.is_left_over(name)]
        if left:
            self.faults.append(f"left over: {left}")
        self.lives.append([])
        self.done["kills"] += 1
        self._up.set()

    def _reload(self) -> None:
        self._call("/pause?mode=wait")
        if self._draw.random() < FAILING_SHARE:
            half = {"method": "reload_half", "args": [str(self._checkpoints[0]), SUFFIXES, 1]}
            try:
                self._server.post("/collective_rpc", half)
                self.faults.append("a reload that failed half-way was not told")
            except urllib.error.HTTPError as error:
                error.close()
                self.done["failed reloads"] += 1
        self.done["reloads"] += 1
        where = str(self._checkpoints[self.done["reloads"] % 2])
        given = {"method": "reload_weights", "kwargs": {"weights_path": where}}
        try:
            self._server.post("/collective_rpc", given)
        except OSError as error:
            self.faults.append(f"a good reload failed: {error}")
        self._call("/resume")

    def _call(self, path: str) -> None:
        try:
            self._server.post(path, {})
        except OSError as error:
            self.faults.append(f"{path}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = model_path("dense")
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(
            model,
            Path(scratch, "log"),
            sharding=SHARDING,
            arguments=("--num-gpu-blocks-override", "40", *probe.ARGUMENTS),
            environment=NO_KERNEL_CACHES | probe.ENVIRONMENT,
        )
        with server:
            checkpoints = (model, reordered(model, Path(scratch, "reordered")))
            soak = Soak(server, checkpoints, questions(model))
            soak.run(options.minutes * 60)
            if soak.faults:
                print(server.log_text()[-8000:])
    longest = max(soak.lives, key=len)
    found = [
        replace(growth, allowed=SHARED_BYTES) if growth.what == "shared_bytes" else growth
        for growth in (growths(longest) if len(longest) >= 8 else [])
    ]
    for what, count in sorted(soak.done.items()):
        print(f"{what:>14}: {count:,}")
    for growth in found:
        verdict = "GROWN" if growth.grown else "steady"
        print(f"{growth.what:>14}: {growth.first:,.0f} -> {growth.last:,.0f}  {verdict}")
    for fault in soak.faults:
        print(f"         FAULT: {fault}")
    if options.json:
        document = {
            "benchmark": "soak_faults",
            "minutes": options.minutes,
            "done": soak.done,
            "faults": soak.faults,
            "growth": [asdict(growth) | {"grown": growth.grown} for growth in found],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if soak.faults or any(growth.grown for growth in found) else 0


if __name__ == "__main__":
    sys.exit(main())
