"""How much of the movement hides: a stack of layers on real ranks, against the ideal bound.

For each ratio of fetch to compute and each prefetch step everybody runs one forward in turn, round
after round: the machine's load meets all of them, and what is compared are ratios within a round.
A step is the slowest rank's, and ends when nothing is in flight any more.

The bound is max(compute, fetch). `compute` is what this very forward computed: on a CPU it sleeps,
which leaves the cores to the ranks' gloo; on GPUs it is real GEMMs. `fetch` is all the layers' bare
broadcasts, with as many in flight as the step allows and no compute, just before and after in the
same round. The ratio is of a round: a layer's compute is set from the fetch that was measured last.
A forward that begins with nothing in flight cannot reach the bound: of the first fetch only half a
layer hides, and half a layer follows the last one. "planned" is what the planner's simulation says
of the same compute and fetch. Run: python benchmarks/overlap.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from compute import Compute, Gemms, Slept
from contestants import CONTESTANTS, Contestant, Sampled, Unsharded
from result import Times, publish
from torch.multiprocessing.spawn import spawn

from vllm_layershard.estimate.overlap import TimedLayer, TimedStep, movements, simulate
from vllm_layershard.plan import Series, build_plan

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
STEPS = (0, 1, 2, 3)
WITHIN = 1.05
OURS = "layer sharding"


@dataclass(frozen=True, slots=True)
class Race:
    """One run: `layers` of `layer_bytes` each, everybody `rounds` times at each ratio and step."""

    ranks: int
    layers: int
    layer_bytes: int
    rounds: int
    ratios: tuple[float, ...] = RATIOS
    steps: tuple[int, ...] = STEPS


RACES = (Race(2, 24, 16 << 20, 9), Race(4, 24, 8 << 20, 9))
SMOKE = (Race(2, 6, 1 << 20, 1, ratios=(0.5,), steps=(0, 1)),)


class Track:
    """One rank's side of a race; all ranks do the same in the same order."""

    def __init__(self, race: Race, device: torch.device) -> None:
        self.race, self.device = race, device
        self.compute: Compute = Gemms(device) if device.type == "cuda" else Slept()
        self.expected = Unsharded("unsharded", 0, self.stack()).forward(lambda: None).item()
        self._weights = [linear.weight.data.clone() for linear in self.stack()[:4]]

    def stack(self) -> list[Sampled]:
        return [Sampled(i, self.race.layer_bytes, self.device) for i in range(self.race.layers)]

    def fetch(self, in_flight: int) -> float:
        """Seconds of the bare broadcasts of all layers."""
        self._meet()
        started = time.perf_counter()
        works: list[Any] = []
        for layer_id in range(self.race.layers):
            if len(works) == in_flight:
                works.pop(0).wait()
            weight = self._weights[layer_id % len(self._weights)]
            works.append(dist.broadcast(weight, src=layer_id % self.race.ranks, async_op=True))
        for work in works:
            work.wait()
        self.compute.finish()
        return self._slowest(time.perf_counter() - started, 0.0)[0]

    def forward(self, one: Contestant, half_s: float) -> tuple[float, float]:
        """Seconds of one forward, and of its compute.

        Raises:
            AssertionError: its numbers are not those of the unsharded stack.
        """
        self._meet()
        self.compute.begin(half_s)
        Sampled.spent_s = 0.0
        started = time.perf_counter()
        found = one.forward(self.compute.half)
        one.settle()
        self.compute.finish()
        took = time.perf_counter() - started
        assert found.item() == self.expected, f"{one.name}, step {one.step}: {found}"
        return self._slowest(took, self.compute.busy_s + Sampled.spent_s)

    def _meet(self) -> None:
        dist.barrier()
        self.compute.finish()

    def _slowest(self, took: float, busy: float) -> tuple[float, float]:
        mine = torch.tensor([took, busy], dtype=torch.float64, device=self.device)
        all_ = [torch.empty_like(mine) for _ in range(self.race.ranks)]
        dist.all_gather(all_, mine)
        took, busy = max(one.tolist() for one in all_)
        return took, busy

    def rounds(self, ratio: float, step: int, everybody: list[Contestant]) -> list[dict[str, Any]]:
        """Of each round: the fetch alone, and everybody's seconds and compute by name."""
        found = []
        before = self.fetch(step + 1)
        for turn in range(self.race.rounds):
            half_s = before / self.race.layers / ratio / 2
            first = turn % len(everybody)
            times = {
                one.name: self.forward(one, half_s) for one in everybody[first:] + everybody[:first]
            }
            after = self.fetch(step + 1)
            found.append({"fetch": (before + after) / 2, "times": times})
            before = after
        return found


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
            everybody = [kind(name, step, track.stack()) for name, kind in CONTESTANTS.items()]
            for one in everybody * 2:
                track.forward(one, 0.0)
            for ratio in race.ratios:
                rounds = track.rounds(ratio, step, everybody)
                found.append({"ratio": ratio, "step": step, "rounds": rounds})
                if rank == 0:
                    said = f"overlap: {race.ranks} ranks, step {step}, fetch/compute {ratio}"
                    print(said, file=sys.stderr, flush=True)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def planned(race: Race, step: int, compute_s: float, fetch_s: float) -> float:
    """What the planner's simulation says of a stack that takes these seconds, each alone."""
    series = Series("linear", tuple(range(race.layers)), race.layer_bytes)
    plan = build_plan([series], race.ranks, prefetch_step=step)
    names = [[f"layers.{i}.linear" for i in range(race.layers)]]
    half = TimedStep("", compute_s / race.layers / 2)
    layers = [TimedLayer(i, (half, TimedStep("linear", 0.0), half)) for i in range(race.layers)]
    return simulate(layers, movements(plan, names, lambda _: fetch_s / race.layers)).total


def row_of(race: Race, ratio: float, step: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds, medians of the rounds; and ours over the others', medians of the ratios."""
    over: dict[str, list[float]] = {}
    for one in rounds:
        ours, compute = one["times"][OURS]
        over.setdefault("/ bound", []).append(ours / max(compute, one["fetch"]))
        over.setdefault("/ planned", []).append(ours / planned(race, step, compute, one["fetch"]))
        for name, (seconds, _) in one["times"].items():
            if name != OURS:
                over.setdefault(f"/ {name}", []).append(ours / seconds)
    row: dict[str, Any] = {"ranks": race.ranks, "fetch/compute": ratio, "step": step}
    row["fetch_ms"] = _ms([one["fetch"] for one in rounds])
    row["compute_ms"] = _ms([one["times"][OURS][1] for one in rounds])
    for name in CONTESTANTS:
        row[f"{name} ms"] = _ms([one["times"][name][0] for one in rounds])
    for name, ratios in over.items():
        times = Times.of(ratios)
        row |= {name: round(times.median, 3), f"{name} low": round(times.low, 3)}
        row |= {f"{name} high": round(times.high, 3)}
    return row | {"rounds": len(rounds), "correct": sorted(rounds[0]["times"])}


def _ms(seconds: list[float]) -> float:
    return round(Times.of(seconds).median * 1e3, 2)


def raced(race: Race) -> list[dict[str, Any]]:
    """A row for each ratio and step."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (race, folder), nprocs=race.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    return [row_of(race, one["ratio"], one["step"], one["rounds"]) for one in found]


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Where layer sharding, at its best step against the bound, is not what it promises."""
    found = []
    for ranks, ratio in sorted({(row["ranks"], row["fetch/compute"]) for row in rows}):
        here = [row for row in rows if (row["ranks"], row["fetch/compute"]) == (ranks, ratio)]
        best = min(here, key=lambda row: row["/ bound"])
        where = f"{ranks} ranks, fetch/compute {ratio}, step {best['step']}"
        if best["/ bound"] > WITHIN:
            found.append(f"{where}: {best['/ bound']} of the bound")
        if ratio < 1:
            others = [name for name in CONTESTANTS if name != OURS and best[f"/ {name}"] > 1]
            found += [f"{where}: {best[f'/ {name}']} of {name}" for name in others]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--check", action="store_true", help="fail where a promise is missed")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--ranks", type=int, help="2 or 4 alone")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    options = parser.parse_args()
    races = [race for race in RACES if options.ranks in (None, race.ranks)]
    races = [
        replace(
            race,
            rounds=options.rounds or race.rounds,
            steps=tuple(options.steps),
            ratios=tuple(options.ratios),
        )
        for race in races
    ]
    rows = [row for race in (SMOKE if options.smoke else races) for row in raced(race)]
    columns = ["ranks", "fetch/compute", "step", "fetch_ms", "compute_ms", f"{OURS} ms"]
    columns += ["/ bound", "/ planned", *(f"/ {name}" for name in CONTESTANTS if name != OURS)]
    publish("overlap", "A forward against the ideal bound", columns, rows, options.json)
    missed = misses(rows)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
