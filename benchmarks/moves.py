"""Forwards that move weights, tokens, or what the planner's threshold says: bytes, and times.

Real ranks run the runtime's ops over gloo, on a network of their own whose one link the kernel
paces. In every layer half of the compute stands before the linear and half behind it. Compute and
products are slept, which leaves the cores to gloo: a time for any number of tokens, and above that
one for each token. An owner that multiplies all ranks' tokens sleeps as much longer.

The three ways run in turn, round after round, after each has been seen to be right. What is
compared are ratios within a round; a forward takes as long as its slowest rank, and ends when
nothing is in flight. `planned` is what the planner's functions say of this link and this compute;
`auto` has the threshold that they find. Bytes are what the link has carried over the formula
(estimate/activations/bytes_moved.py); over four ranks they alone are counted.

Run: python benchmarks/moves.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from link import LinkError, paced, sent_bytes
from mover import Mover
from result import Times, publish
from torch.multiprocessing.spawn import spawn

from vllm_layershard.config import Move
from vllm_layershard.estimate.activations.bytes_moved import BytesMoved
from vllm_layershard.estimate.broadcast import broadcast_seconds
from vllm_layershard.estimate.exchange.collectives import rooted_seconds
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.overlap import TimedLayer, TimedOperation, movements, simulate
from vllm_layershard.estimate.phases.thresholds import fewest_tokens
from vllm_layershard.plan import Series, build_plan

BYTES_WITHIN = 0.03
"""Bytes counted are the formula's within this share of it."""

LEAST_BYTES = 1 << 20
"""Of fewer, the ranks' barriers are a share of their own."""

AUTO_WITHIN = 1.10
"""What `auto` takes over the quicker way, where the two differ by more than that."""

BREAK_EVEN_WITHIN = 2.0
"""The planner's threshold over the measured one, or the reverse."""

LAYERS = 6
INNER, WIDTH = 4096, 1792
"""A quarter of DeepSeek-V3's o_proj: 14 MiB in bf16."""

COMPUTE_S, COMPUTE_A_TOKEN_S = 3e-3, 20e-6
PRODUCT_S, PRODUCT_A_TOKEN_S = 5e-4, 1e-6
LATENCY_S = 3e-4
"""Of a collective over gloo: two threads wake each other."""

WAYS: tuple[Move, ...] = ("weights", "activations", "auto")


@dataclass(frozen=True, slots=True)
class Case:
    """So many tokens on each of so many ranks; `auto` moves weights from `weights_from` on."""

    ranks: int
    tokens: int
    rounds: int
    weights_from: int
    slept: bool = True

    @property
    def traffic(self) -> BytesMoved:
        """What the planner says of one linear."""
        weight = INNER * WIDTH * torch.bfloat16.itemsize
        return BytesMoved(self.ranks, INNER, WIDTH, torch.bfloat16.itemsize, weight)


TOKENS = (8, 32, 128, 256, 512, 1024, 2048, 4096)


def compute_seconds(tokens: int) -> float:
    """What a layer computes beside its linear."""
    return max(COMPUTE_S, tokens * COMPUTE_A_TOKEN_S)


def product_seconds(tokens: int) -> float:
    """What the linear takes."""
    return max(PRODUCT_S, tokens * PRODUCT_A_TOKEN_S)


def hardware_of(gbit: float) -> Hardware:
    """The link as a device's profile has it."""

    def figure(value: float) -> Figure:
        return Figure(value, "measured", "paced by the kernel")

    return Hardware(
        "paced",
        intra_node=figure(gbit / 8 * 1e9),
        link_efficiency=figure(1.0),
        latency=figure(LATENCY_S),
        latency_per_rank=Figure(0.0, "assumed", "two ranks"),
    )


def planned_seconds(case: Case, gbit: float) -> dict[str, float]:
    """A forward each way, as the planner's functions have it."""
    hardware, spread = hardware_of(gbit), Spread(case.ranks, domains=1, in_a_domain=case.ranks)
    traffic, tokens = case.traffic, case.tokens
    fetch = broadcast_seconds(traffic.weight, spread, hardware)
    series = Series("o_proj", tuple(range(LAYERS)), traffic.weight)
    plan = build_plan([series], case.ranks, prefetch_step=1)
    half = TimedOperation("", compute_seconds(tokens) / 2)
    own = product_seconds(tokens)
    layers = [
        TimedLayer(layer, (half, TimedOperation("o_proj", own), half)) for layer in range(LAYERS)
    ]
    moves = movements(plan, [[f"layers.{i}.o_proj" for i in range(LAYERS)]], lambda _: fetch)
    there, back = (
        rooted_seconds(tokens * columns * traffic.element, spread, hardware)
        for columns in (INNER, WIDTH)
    )
    of_all = there + product_seconds(case.ranks * tokens) + back
    return {
        "weights": simulate(layers, moves).total,
        "activations": LAYERS * (compute_seconds(tokens) + of_all),
    }


def planned_threshold(gbit: float) -> int:
    """From so many tokens on weights are as quick, as the planner looks for it."""

    def progress(tokens: int) -> float:
        both = planned_seconds(Case(2, tokens, 0, 1), gbit)
        return both["activations"] - both["weights"]

    found = fewest_tokens(progress, TOKENS[0], TOKENS[-1])
    assert found is not None, "the products of all ranks take longer than their own"
    return found


def rank_main(rank: int, case: Case, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.ranks)
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
    sleeps = (compute_seconds, product_seconds) if case.slept else (_none, _none)
    with torch.inference_mode():
        movers = Mover.of_ways(WAYS, LAYERS, INNER, WIDTH, case.weights_from, *sleeps)
        for way in WAYS:
            movers[way].check(case.tokens)
        for round_ in range(case.rounds + 1):
            for way in WAYS:
                measured = _measured(movers[way], case.tokens)
                if round_:  # the first one connects the ranks
                    found[way].append(measured)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _none(tokens: int) -> float:
    return 0.0


def _measured(mover: Mover, tokens: int) -> tuple[float, int]:
    """Seconds of a forward, the slowest rank's, and the bytes of all ranks together."""
    dist.barrier()
    before, started = sent_bytes(), time.perf_counter()
    dist.barrier()
    mover.forward(tokens)
    dist.barrier()
    took, after = time.perf_counter() - started, sent_bytes()
    dist.barrier()
    return took, after - before


def row_of(case: Case, found: dict[str, list[tuple[float, int]]], gbit: float) -> dict[str, Any]:
    """Medians of the rounds; ratios are within a round."""
    traffic = case.traffic
    formula = {
        "weights": LAYERS * (case.ranks - 1) * traffic.weight,
        "activations": LAYERS * traffic.owner_computes(case.tokens),
    }
    seconds = {way: [took for took, _ in rounds] for way, rounds in found.items()}
    row: dict[str, Any] = {"ranks": case.ranks, "tokens": case.tokens, "rounds": case.rounds}
    for way in WAYS:
        times = Times.of(seconds[way])
        row[f"{way} ms"] = round(times.median * 1e3, 2)
        row |= {f"{way} ms low": times.low * 1e3, f"{way} ms high": times.high * 1e3}
    for way, nbytes in formula.items():
        counted = Times.of([float(one) for _, one in found[way]])
        row[f"{way} bytes"] = int(counted.median)
        row[f"{way} / formula"] = round(counted.median / nbytes, 4)
    if case.ranks == 2:
        for way, planned in planned_seconds(case, gbit).items():
            row[f"{way} planned ms"] = round(planned * 1e3, 2)
    each = list(zip(*(seconds[way] for way in WAYS), strict=True))
    row["auto moves"] = "weights" if case.tokens >= case.weights_from else "activations"
    row["activations / weights"] = _ratio([tokens / weights for weights, tokens, _ in each])
    row["auto / quicker"] = _ratio([auto / min(both) for *both, auto in each])
    return row


def _ratio(rounds: list[float]) -> float:
    return round(Times.of(rounds).median, 3)


def measured(case: Case, gbit: float) -> dict[str, Any]:
    """A row."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (case, folder), nprocs=case.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    print(f"moves: {case.ranks} ranks, {case.tokens} tokens", file=sys.stderr, flush=True)
    return row_of(case, found, gbit)


def break_even(rows: list[dict[str, Any]]) -> float | None:
    """The tokens at which both ways take as long, between two rows by powers; None: they never do.

    Of two ranks, whose times are measured.
    """
    ratios = [(row["tokens"], row["activations / weights"]) for row in rows if row["ranks"] == 2]
    for (fewer, below), (more, above) in pairwise(ratios):
        if below < 1 <= above:
            share = log(1 / below) / log(above / below)
            return exp(log(fewer) + share * log(more / fewer))
    return None


def misses(rows: list[dict[str, Any]], threshold: int) -> Iterator[str]:
    """Where the bytes, what `auto` took or the threshold are not what is promised."""
    for row in rows:
        where = f"{row['ranks']} ranks, {row['tokens']} tokens"
        for way in ("weights", "activations"):
            few = row[f"{way} bytes"] < LEAST_BYTES
            if not few and abs(row[f"{way} / formula"] - 1) > BYTES_WITHIN:
                yield f"{where}: {way} sent {row[f'{way} / formula']} of the formula's bytes"
        if row["ranks"] > 2:
            continue
        ratio = row["activations / weights"]
        if max(ratio, 1 / ratio) <= AUTO_WITHIN:
            continue
        quicker = "activations" if ratio < 1 else "weights"
        if row["auto moves"] != quicker:
            yield f"{where}: auto moves {row['auto moves']}, and {quicker} are quicker ({ratio})"
        if row["auto / quicker"] > AUTO_WITHIN:
            yield f"{where}: auto takes {row['auto / quicker']} of the quicker way"
    found = break_even(rows)
    if found is None:
        yield "no number of tokens makes both ways as long"
    elif max(found / threshold, threshold / found) > BREAK_EVEN_WITHIN:
        yield f"both ways are as long at {found:.0f} tokens, and the planner says {threshold}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--check", action="store_true", help="fail where a promise is missed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--link-gbit", type=float, default=2, help="the rate of the link")
    options = parser.parse_args()
    gbit = options.link_gbit
    threshold = planned_threshold(gbit)
    cases = [Case(2, tokens, options.rounds, threshold) for tokens in TOKENS]
    cases += [Case(4, tokens, 3, threshold, slept=False) for tokens in (128, 512)]
    if options.smoke:
        cases = [Case(2, 8, 1, threshold), Case(2, 4096, 1, threshold)]
        cases += [Case(4, 128, 1, threshold, slept=False)]
    try:
        with paced(gbit):
            rows = [measured(case, gbit) for case in cases]
    except LinkError as error:
        print(error, file=sys.stderr)
        return 2
    timed = [row for row in rows if row["ranks"] == 2]
    columns = ["tokens", *(f"{way} ms" for way in WAYS), "weights planned ms"]
    columns += ["activations planned ms", "activations / weights", "auto moves", "auto / quicker"]
    publish("moves", "A forward of two ranks, each way", columns, timed, None)
    columns = ["ranks", "tokens", "weights bytes", "weights / formula"]
    columns += ["activations bytes", "activations / formula"]
    publish("moves", "Bytes of all ranks, counted on the link", columns, rows, options.json)
    found = break_even(rows)
    print(f"as long at {'no number of' if found is None else round(found)} tokens a rank")
    print(f"the planner says {threshold}")
    missed = list(misses(rows, threshold))
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
