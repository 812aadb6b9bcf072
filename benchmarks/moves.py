"""Forwards that move weights, tokens, or what the planner's threshold says: bytes, and times.

Real ranks run the runtime's ops over gloo, on a network of their own whose one link the kernel
paces. In every layer half of the compute stands before the linear and half behind it. Compute and
products are slept, which leaves the cores to gloo: a time for any number of tokens, and above that
one for each token. An owner that multiplies all ranks' tokens sleeps as much longer. Where each
rank stores some rows of every weight, it pulls the others' from their memory: no kernel paces that,
and behind each pull is slept what its bytes take on the link.

The three ways run in turn, round after round, after each has been seen to be right, and each time
begins another. Each way runs for about as long. Short forwards scatter, so a round has several of
them in turn and counts their mean, and there are twice as many rounds. What is compared are
ratios within a round; a forward takes as long as its slowest rank, and ends when nothing is in
flight. `planned` is what the planner's functions say of this link and this compute; `auto` has the
threshold that they find. Bytes are what the link has carried over the formula
(estimate/moved/bytes_moved.py), and those that were pulled; over four ranks they alone are
counted.

Run: python benchmarks/moves.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from link import LinkError, paced, sent_bytes
from mover import Mover
from moving import (
    INNER,
    LAYERS,
    PLACEMENTS,
    TOKENS,
    WIDTH,
    Case,
    compute_seconds,
    planned_seconds,
    planned_threshold,
    product_seconds,
)
from result import Times, publish
from torch.multiprocessing.spawn import spawn

from vllm_layershard.config import Move, Placement

BYTES_WITHIN = 0.03
"""Bytes counted are the formula's within this share of it."""

LEAST_BYTES = 1 << 20
"""Of fewer, the ranks' barriers are a share of their own."""

AUTO_WITHIN = 1.10
"""What `auto` takes over the quicker way, where the two differ by more than that."""

BREAK_EVEN_WITHIN = 2.0
"""The planner's threshold over the measured one, or the reverse."""

WAYS: tuple[Move, ...] = ("weights", "activations", "auto")


def rank_main(rank: int, case: Case, gbit: float, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.ranks)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    sleeps = (compute_seconds, product_seconds) if case.slept else (_none, _none)
    pulled = case.pulled_seconds(gbit) if case.slept else 0.0
    with torch.inference_mode():
        movers = Mover.of_ways(
            WAYS, LAYERS, INNER, WIDTH, case.weights_from, *sleeps, case.placement, pulled
        )
        for way in WAYS:
            movers[way].check(case.tokens)
        forwards = {way: case.forwards(way, gbit) for way in WAYS}
        for round_ in range(case.rounds + 1):
            each: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
            for way in turns_of(round_, forwards):
                each[way].append(_measured(movers[way], case.tokens))
            if round_:  # the first one connects the ranks
                for way in WAYS:
                    found[way].append(_mean(each[way]))
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def turns_of(round_: int, forwards: Mapping[Move, int]) -> Iterator[Move]:
    """The forwards of a round: the ways take turns, as long as each has any left.

    What else the machine does slows them alike. Every turn begins with another way.
    """
    for turn in range(max(forwards.values())):
        first = (round_ + turn) % len(WAYS)
        for way in WAYS[first:] + WAYS[:first]:
            if turn < forwards[way]:
                yield way


def _none(tokens: int, share: float = 1.0) -> float:
    return 0.0


def _measured(mover: Mover, tokens: int) -> tuple[float, int]:
    """Seconds of a forward, the slowest rank's, and the bytes of all ranks together."""
    dist.barrier()
    before, started = sent_bytes() + _pulled_bytes(mover), time.perf_counter()
    dist.barrier()
    mover.forward(tokens)
    dist.barrier()
    took, after = time.perf_counter() - started, sent_bytes() + _pulled_bytes(mover)
    dist.barrier()
    return took, after - before


def _mean(forwards: list[tuple[float, int]]) -> tuple[float, float]:
    """Of the seconds, and of the bytes."""
    seconds, nbytes = zip(*forwards, strict=True)
    return fmean(seconds), fmean(nbytes)


def _pulled_bytes(mover: Mover) -> int:
    """Of all ranks, which pull as much as each other."""
    return dist.get_world_size() * mover.pulled_bytes


def row_of(case: Case, found: dict[str, list[tuple[float, float]]], gbit: float) -> dict[str, Any]:
    """Medians of the rounds; ratios are within a round, over the way that is quicker in most."""
    seconds = {way: [took for took, _ in rounds] for way, rounds in found.items()}
    row: dict[str, Any] = {"placement": case.placement, "ranks": case.ranks}
    row |= {"tokens": case.tokens, "rounds": case.rounds}
    for way in WAYS:
        times = Times.of(seconds[way])
        row[f"{way} ms"] = round(times.median * 1e3, 2)
        row |= {f"{way} ms low": times.low * 1e3, f"{way} ms high": times.high * 1e3}
    for way, nbytes in case.formula.items():
        counted = Times.of([nbytes for _, nbytes in found[way]])
        row[f"{way} bytes"] = int(counted.median)
        row[f"{way} / formula"] = round(counted.median / nbytes, 4)
    if case.ranks == 2:
        for way, planned in planned_seconds(case, gbit).items():
            row[f"{way} planned ms"] = round(planned * 1e3, 2)
    row["auto moves"] = case.moves("auto")
    row["activations / weights"] = _ratio(seconds["activations"], seconds["weights"])
    quicker = "activations" if row["activations / weights"] < 1 else "weights"
    row["auto / quicker"] = _ratio(seconds["auto"], seconds[quicker])
    return row


def _ratio(ones: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios."""
    each = [one / other for one, other in zip(ones, others, strict=True)]
    return round(Times.of(each).median, 3)


def measured(case: Case, gbit: float) -> dict[str, Any]:
    """A row."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (case, gbit, folder), nprocs=case.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    where = f"{case.placement}, {case.ranks} ranks, {case.tokens} tokens"
    print(f"moves: {where}", file=sys.stderr, flush=True)
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


def of_placement(rows: list[dict[str, Any]], placement: Placement) -> list[dict[str, Any]]:
    return [row for row in rows if row["placement"] == placement]


def misses(rows: list[dict[str, Any]], thresholds: Mapping[Placement, int]) -> Iterator[str]:
    """Where the bytes, what `auto` took or a placement's threshold are not what is promised."""
    for row in rows:
        where = f"{row['placement']}, {row['ranks']} ranks, {row['tokens']} tokens"
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
    for placement, threshold in thresholds.items():
        found = break_even(of_placement(rows, placement))
        if found is None:
            yield f"{placement}: no number of tokens makes both ways as long"
        elif max(found / threshold, threshold / found) > BREAK_EVEN_WITHIN:
            yield (
                f"{placement}: both ways are as long at {found:.0f} tokens, and the planner says "
                f"{threshold}"
            )


def cases_of(
    thresholds: Mapping[Placement, int], rounds: int, gbit: float, *, smoke: bool
) -> Iterator[Case]:
    """Times of two ranks, of short forwards in twice as many rounds; bytes alone of four."""
    for placement, start in thresholds.items():
        for tokens in (TOKENS[0], TOKENS[-1]) if smoke else TOKENS:
            case = Case(2, tokens, 1 if smoke else rounds, start, placement=placement)
            is_short = case.forwards("auto", gbit) > 1
            yield replace(case, rounds=2 * rounds) if is_short and not smoke else case
        for tokens in (128,) if smoke else (128, 512):
            yield Case(4, tokens, 1 if smoke else 3, start, slept=False, placement=placement)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--check", action="store_true", help="fail where a promise is missed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--placement", choices=PLACEMENTS, help="one alone, in half of the time")
    parser.add_argument("--link-gbit", type=float, default=2, help="the rate of the link")
    options = parser.parse_args()
    gbit = options.link_gbit
    placements = PLACEMENTS if options.placement is None else (options.placement,)
    thresholds = {placement: planned_threshold(gbit, placement) for placement in placements}
    cases = cases_of(thresholds, options.rounds, gbit, smoke=options.smoke)
    try:
        with paced(gbit):
            rows = [measured(case, gbit) for case in cases]
    except LinkError as error:
        print(error, file=sys.stderr)
        return 2
    timed = [row for row in rows if row["ranks"] == 2]
    columns = ["placement", "tokens", *(f"{way} ms" for way in WAYS), "weights planned ms"]
    columns += ["activations planned ms", "activations / weights", "auto moves", "auto / quicker"]
    publish("moves", "A forward of two ranks, each way", columns, timed, None)
    columns = ["placement", "ranks", "tokens", "weights bytes", "weights / formula"]
    columns += ["activations bytes", "activations / formula"]
    publish("moves", "Bytes of all ranks, counted on the link", columns, rows, options.json)
    for placement, threshold in thresholds.items():
        found = break_even(of_placement(rows, placement))
        tokens = "no number of" if found is None else round(found)
        print(f"{placement}: as long at {tokens} tokens a rank; the planner says {threshold}")
    missed = list(misses(rows, thresholds))
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
