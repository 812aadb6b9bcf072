"""How much of the movement hides: a stack of layers on real ranks, against the ideal bound.

For each ratio of fetch to compute and each prefetch step everybody runs one forward in turn, round
after round: the machine's load meets all of them, and what is compared are ratios within a round.
A step is the slowest rank's, and ends when nothing is in flight any more.

The bound is max(compute, fetch). `compute` is what this very forward computed: on a CPU it sleeps,
which leaves the cores to the ranks' gloo; on GPUs it is real GEMMs. What the stack with all weights
in place takes beyond its compute, in the same round, is the loop's own and counts as compute, too.
`fetch` is all the layers' bare broadcasts, with as many in flight as the step allows and no
compute, just before and after in the same round. The ratio is of a round: a layer's compute is set
from the fetch that was measured last. A CPU oversleeps now more and now less: where two are
compared, each one's time is taken over its own compute.
A forward that begins with nothing in flight cannot reach the bound: of the first fetch only half a
layer hides, and half a layer follows the last one. With `keep_first` (columns of that name) every
rank keeps the first layer, behind which the second one's fetch hides; its bound has one fetch less.
"planned" is what the planner's simulation says of the same compute and fetch.

The bound of pulls is made of the bare pulls of the same bytes. Ranks that pull share memory and no
link. `--link-gbit N` races those that broadcast alone, over a link that the kernel paces.
Run: python benchmarks/overlap.py
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contestants import CONTESTANTS
from link import LinkError, paced
from result import Times, publish
from torch.multiprocessing.spawn import spawn
from track import RATIOS, STEPS, Race, Track

from vllm_layershard.estimate.forwards.movements import movements
from vllm_layershard.estimate.forwards.overlap import TimedLayer, TimedOperation, simulate
from vllm_layershard.plan import Series, build_plan

WITHIN = 1.05
OURS = "layer sharding"
KEPT = "keep_first"
PULL = "pull"
RIVALS = ("first version", "FSDP2")

PULL_WITHIN = 1.03
"""Of its bound, where the compute hides the pulls."""

NOT_ABOVE = 1.0

RACES = (Race(2, 24, 16 << 20, 9), Race(4, 24, 8 << 20, 9))
SMOKE = (Race(2, 6, 1 << 20, 1, ratios=(0.5,), steps=(0, 1)),)


def rank_main(rank: int, race: Race, folder: str) -> None:
    torch.set_num_threads(1)
    on_gpu = torch.cuda.device_count() >= race.ranks
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=race.ranks,
    )
    found = []
    with torch.no_grad():
        track = Track(race, device)
        for step in race.steps:
            everybody = [CONTESTANTS[name](name, step, track.stack()) for name in race.names]
            for one in everybody * 2:
                track.forward(one, 0.0)
            for ratio in race.ratios:
                rounds = track.rounds(ratio, step, everybody)
                found.append({"ratio": ratio, "step": step, "rounds": rounds})
                if rank == 0:
                    said = f"overlap: {race.ranks} ranks, step {step}, fetch/compute {ratio}"
                    print(said, file=sys.stderr, flush=True)
            del everybody, one
            gc.collect()  # their shared memory
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def planned(
    race: Race, step: int, compute_s: float, moved_s: float, *, pulls: bool = False, kept: int = 0
) -> float:
    """What the planner's simulation says of a stack that takes these seconds, each alone.

    `moved_s` is of all broadcasts, or of all the layers that a rank pulls: those of its peers. With
    `kept` the first layer is kept by every rank.
    """
    shared = range(kept, race.layers)
    first = 0 if kept else None
    series = Series("linear", tuple(shared), race.layer_bytes, kept_layer=first)
    plan = build_plan([series], race.ranks, prefetch_step=step)
    names = [[f"layers.{i}.linear" for i in shared]]
    half = TimedOperation("", compute_s / race.layers / 2)
    layers = [
        TimedLayer(i, (half, TimedOperation("linear", 0.0), half)) for i in range(race.layers)
    ]
    one_s = moved_s / len(shared)
    if not pulls:
        return simulate(layers, movements(plan, names, lambda _: one_s)).total
    one_s *= race.ranks / (race.ranks - 1)
    of_ranks = (movements(plan, names, lambda _: one_s, rank) for rank in range(race.ranks))
    return max(simulate(layers, moves).total for moves in of_ranks)


def row_of(race: Race, ratio: float, step: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds, medians of the rounds; and ours over the others', medians of the ratios."""
    over: dict[str, list[float]] = {}
    for one in rounds:
        times = one["times"]
        loop = max(0.0, one["unsharded"][0] - one["unsharded"][1])
        for name, kept in ((OURS, 0), (KEPT, 1)):
            ours, slept = times[name]
            compute, fetch = slept + loop, one["fetch"] * (1 - kept / race.layers)
            ratios = {
                "bound": ours / max(compute, fetch),
                "planned": ours / planned(race, step, compute, fetch, kept=kept),
                **{rival: _beside(times[name], times[rival]) for rival in RIVALS},
            }
            for other, found in ratios.items():
                over.setdefault(f"{_column(name)}/ {other}", []).append(found)
        if PULL in times:
            seconds, computed = times[PULL]
            compute = computed + loop
            expected = planned(race, step, compute, one["pulls"], pulls=True)
            over.setdefault("pull / bound", []).append(seconds / max(compute, one["pulls"]))
            over.setdefault("pull / planned", []).append(seconds / expected)
            over.setdefault("pull / broadcast", []).append(_beside(times[PULL], times[OURS]))
    row: dict[str, Any] = {"ranks": race.ranks, "fetch/compute": ratio, "step": step}
    row["fetch_ms"] = _ms([one["fetch"] for one in rounds])
    row["compute_ms"] = _ms([one["times"][OURS][1] for one in rounds])
    if PULL in race.names:
        row["pulls_ms"] = _ms([one["pulls"] for one in rounds])
    for name in race.names:
        row[f"{name} ms"] = _ms([one["times"][name][0] for one in rounds])
    for name, values in over.items():
        spread = Times.of(values)
        row |= {name: round(spread.median, 3), f"{name} low": round(spread.low, 3)}
        row |= {f"{name} high": round(spread.high, 3)}
    return row | {"rounds": len(rounds), "correct": sorted(rounds[0]["times"])}


def _column(name: str) -> str:
    """How the columns of layer sharding begin, and those of its variant."""
    return "" if name == OURS else f"{name} "


def _beside(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """One's time over another's, each taken over its own compute."""
    return (mine[0] / mine[1]) / (theirs[0] / theirs[1])


def _ms(seconds: list[float]) -> float:
    return round(Times.of(seconds).median * 1e3, 2)


def raced(race: Race) -> list[dict[str, Any]]:
    """A row for each ratio and step."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (race, folder), nprocs=race.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    return [row_of(race, one["ratio"], one["step"], one["rounds"]) for one in found]


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Where layer sharding, at its best step against the bound, is not what it promises.

    With `keep_first` it promises the same: neither makes up for the other.
    """
    found = []
    for ranks, ratio in sorted({(row["ranks"], row["fetch/compute"]) for row in rows}):
        here = [row for row in rows if (row["ranks"], row["fetch/compute"]) == (ranks, ratio)]
        for name in (OURS, KEPT):
            found += _misses_of(name, here)
        if "pulls_ms" in here[0]:
            found += _pull_misses(here)
    return found


def _misses_of(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Those of layer sharding or its variant, at one ratio."""
    column, ratio = _column(name), rows[0]["fetch/compute"]
    best = min(rows, key=lambda row: row[f"{column}/ bound"])
    where = f"{best['ranks']} ranks, fetch/compute {ratio}, {column}step {best['step']}"
    if best[f"{column}/ bound"] > WITHIN:
        yield f"{where}: {best[f'{column}/ bound']} of the bound"
    for rival in RIVALS:
        if ratio < 1 and best[f"{column}/ {rival}"] > 1:
            yield f"{where}: {best[f'{column}/ {rival}']} of {rival}"


def _pull_misses(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The same of pulls, at one ratio: no step above a broadcast, the best one near its bound."""
    where = f"{rows[0]['ranks']} ranks, fetch/compute {rows[0]['fetch/compute']}, pull, step"
    for row in rows:
        if row["pull / broadcast"] > NOT_ABOVE:
            yield f"{where} {row['step']}: {row['pull / broadcast']} of the broadcast"
    best = min(rows, key=lambda row: row["pull / bound"])
    if best["pulls_ms"] < best["compute_ms"] and best["pull / bound"] > PULL_WITHIN:
        yield f"{where} {best['step']}: {best['pull / bound']} of its bound"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--check", action="store_true", help="fail where a promise is missed")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--ranks", type=int, help="2 or 4 alone")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--link-gbit", type=float, help="pace the link; nobody pulls")
    options = parser.parse_args()
    races = [
        replace(
            race,
            rounds=options.rounds or race.rounds,
            steps=tuple(options.steps),
            ratios=tuple(options.ratios),
        )
        for race in RACES
        if options.ranks in (None, race.ranks)
    ]
    names = tuple(name for name in CONTESTANTS if options.link_gbit is None or name != PULL)
    link = nullcontext() if options.link_gbit is None else paced(options.link_gbit)
    try:
        with link:
            races = [replace(race, names=names) for race in (SMOKE if options.smoke else races)]
            rows = [row for race in races for row in raced(race)]
    except LinkError as error:
        print(error, file=sys.stderr)
        return 2
    told = ["ranks", "fetch/compute", "step"]
    columns = [*told, "fetch_ms", "compute_ms", f"{OURS} ms"]
    ratios = ["/ bound", "/ planned", "/ first version", "/ FSDP2"]
    columns += ratios
    publish("overlap", "A forward against the ideal bound", columns, rows, options.json)
    columns = [*told, f"{KEPT} ms", *(f"{KEPT} {ratio}" for ratio in ratios)]
    publish("overlap", "The same with the first layer kept by every rank", columns, rows, None)
    if PULL in names:
        columns = [*told, "pulls_ms", "compute_ms", "pull ms"]
        columns += ["pull / bound", "pull / planned", "pull / broadcast"]
        publish("overlap", "The same with pulls", columns, rows, None)
    missed = misses(rows)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
