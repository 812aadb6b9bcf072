"""What a token exchange sends beside the all-reduce that it replaces: bytes counted, and times.

Real ranks run the ops of the runtime over gloo, on a network of their own whose one link the kernel
paces. Counted is what that link has carried, headers and acknowledgements included, over several
runs of each way in turn; `/ formula` is that over what the planner says
(estimate/exchange/traffic.py). The times are of the collectives alone: no product stands between
the exchange and the gather. `link` is the bytes of the formula over the rate of the link, which all
ranks share.

Run: python benchmarks/exchange.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from link import LinkError, paced, sent_bytes
from result import Times, publish
from torch.multiprocessing.spawn import spawn

from vllm_layershard.estimate.exchange.traffic import Traffic
from vllm_layershard.runtime.exchange.ops import bind_exchange
from vllm_layershard.runtime.exchange.tokens import TokenExchange
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.stats import Counters

WITHIN = 0.03
"""Bytes counted are the formula's within this share of it."""

LINEAR = "model.layers.0.o_proj"
RUNS = 5
"""Of each way in a round, between two looks at the counter."""


@dataclass(frozen=True, slots=True)
class Case:
    """So many tokens of a linear with these widths, over so many ranks; `rounds` are measured."""

    ranks: int
    inner: int
    width: int
    tokens: int
    rounds: int

    @property
    def traffic(self) -> Traffic:
        """What the planner says of it."""
        return Traffic(self.ranks, self.inner, self.width, torch.bfloat16.itemsize)


SHAPES = ((4096, 1792), (2048, 1792))
"""A quarter of DeepSeek-V3's o_proj, whose input is 2.29 times as wide, and of Kimi-K2's: 1.14."""

CASES = tuple(
    Case(ranks, inner, width, tokens, rounds=9)
    for ranks in (2, 4)
    for inner, width in SHAPES
    for tokens in (255, 4095)
)
SMOKE = tuple(Case(ranks, 4096, 1792, 255, rounds=1) for ranks in (2, 4))


def rank_main(rank: int, case: Case, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.ranks)
    ways = _ways(rank, case)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_ in range(case.rounds + 1):
            for name, run in ways.items():
                measured = _measured(run)
                if round_:  # the first one connects the ranks
                    found[name].append(measured)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _ways(rank: int, case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """The all-reduce, and the exchange with the gather behind it, which is seen to be right."""
    bind_exchange(LINEAR, TokenExchange(group_over(None), LINEAR, case.inner, Counters()))
    drawn = torch.Generator().manual_seed(1)
    rows = torch.randn(case.tokens, case.inner, generator=drawn).bfloat16()
    mine = rows.chunk(case.ranks, dim=1)[rank].contiguous()
    partial = torch.ones(case.tokens, case.width, dtype=torch.bfloat16)

    def reduce() -> torch.Tensor:
        dist.all_reduce(partial)
        return partial

    def exchange() -> torch.Tensor:
        share = torch.ops.layershard.exchange(mine, case.ranks, LINEAR)
        result: torch.Tensor = torch.ops.layershard.gather(
            share[:, : case.width], case.tokens, LINEAR
        )
        return result

    with torch.inference_mode():
        assert torch.equal(exchange(), rows[:, : case.width]), "every rank has all rows again"
    return {"all-reduce": reduce, "exchange": exchange}


def _measured(run: Callable[[], torch.Tensor]) -> tuple[float, int]:
    """Seconds of one run, the slowest rank's, and bytes of one run, of all ranks together."""
    dist.barrier()
    before, started = sent_bytes(), time.perf_counter()
    dist.barrier()
    for _ in range(RUNS):
        run()
    dist.barrier()
    took, after = time.perf_counter() - started, sent_bytes()
    dist.barrier()
    return took / RUNS, (after - before) // RUNS


def row_of(case: Case, found: dict[str, list[tuple[float, int]]], gbit: float) -> dict[str, Any]:
    """Medians of the rounds, with the formula's bytes of all ranks."""
    traffic = case.traffic
    formula = {
        "all-reduce": case.ranks * traffic.reduced(case.tokens),
        "exchange": case.ranks * (traffic.exchanged(case.tokens) + traffic.gathered(case.tokens)),
    }
    row: dict[str, Any] = {
        "ranks": case.ranks,
        "input / output": f"{case.inner} / {case.width}",
        "tokens": case.tokens,
    }
    for name, rounds in found.items():
        seconds = Times.of([one for one, _ in rounds])
        counted = Times.of([float(nbytes) for _, nbytes in rounds])
        row[f"{name} bytes"] = int(counted.median)
        row[f"{name} / formula"] = round(counted.median / formula[name], 4)
        row[f"{name} ms"] = round(seconds.median * 1e3, 2)
        row[f"{name} link ms"] = round(formula[name] / gbit * 8e-6, 2)
        row |= {f"{name} ms low": seconds.low * 1e3, f"{name} ms high": seconds.high * 1e3}
    row["bytes ratio"] = round(row["exchange bytes"] / row["all-reduce bytes"], 3)
    row["time ratio"] = round(row["exchange ms"] / row["all-reduce ms"], 3)
    return row | {"planned ratio": round(traffic.ratio, 3), "rounds": case.rounds}


def measured(case: Case, gbit: float) -> dict[str, Any]:
    """A row."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (case, folder), nprocs=case.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    return row_of(case, found, gbit)


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Where the bytes are not the formula's."""
    return [
        f"{row['ranks']} ranks, {row['input / output']}, {row['tokens']} tokens: the {name} sent "
        f"{row[f'{name} / formula']} of the formula's bytes"
        for row in rows
        for name in ("all-reduce", "exchange")
        if abs(row[f"{name} / formula"] - 1) > WITHIN
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of a minute")
    parser.add_argument("--check", action="store_true", help="fail where bytes are others")
    parser.add_argument("--link-gbit", type=float, default=4, help="the rate of the link")
    options = parser.parse_args()
    try:
        with paced(options.link_gbit):
            cases = SMOKE if options.smoke else CASES
            rows = [measured(case, options.link_gbit) for case in cases]
    except LinkError as error:
        print(error, file=sys.stderr)
        return 2
    told = ["ranks", "input / output", "tokens"]
    of_each = [f"{name} {what}" for what in ("bytes", "/ formula") for name in _NAMES]
    columns = [*told, *of_each, "bytes ratio", "planned ratio"]
    publish("exchange", "Bytes of all ranks, counted on the link", columns, rows, options.json)
    of_each = [f"{name} {what}" for name in _NAMES for what in ("ms", "link ms")]
    columns = [*told, *of_each, "time ratio", "planned ratio"]
    publish("exchange", "Times of the same collectives", columns, rows, None)
    missed = misses(rows)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


_NAMES = ("all-reduce", "exchange")


if __name__ == "__main__":
    sys.exit(main())
