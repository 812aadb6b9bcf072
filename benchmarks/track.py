"""Track: one rank's side of a race, in which everybody runs in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from compute import Compute, Gemms, Slept
from contestants import CONTESTANTS, Contestant, Sampled, Unsharded

from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.peer_memory import exports_of
from vllm_layershard.runtime.ranks.group import group_over

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
STEPS = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Race:
    """One run: `layers` of `layer_bytes` each, everybody `rounds` times at each ratio and step."""

    ranks: int
    layers: int
    layer_bytes: int
    rounds: int
    ratios: tuple[float, ...] = RATIOS
    steps: tuple[int, ...] = STEPS
    names: tuple[str, ...] = tuple(CONTESTANTS)


class Track:
    """One rank's side of a race; all ranks do the same in the same order."""

    def __init__(self, race: Race, device: torch.device) -> None:
        self.race, self.device = race, device
        self.compute: Compute = Gemms(device) if device.type == "cuda" else Slept()
        self._unsharded = Unsharded("unsharded", 0, self.stack())
        self.expected = self._unsharded.forward(lambda: None).item()
        self._weights = [linear.weight.data for linear in self.stack()]
        self._sources = self._exported() if "pull" in race.names else []

    def stack(self) -> list[Sampled]:
        return [Sampled(i, self.race.layer_bytes, self.device) for i in range(self.race.layers)]

    def _exported(self) -> list[torch.Tensor | None]:
        """Of each layer the memory of its owner, [nbytes] of uint8; None for this rank's own."""
        group = group_over(None)
        exports = self._exports = exports_of(device_of(self.device), group, "bare")
        mine = range(group.group_rank, self.race.layers, self.race.ranks)
        for layer_id in mine:
            exports.store(layer_id, [self._weights[layer_id]])
        handles = group.gather(exports.handles())
        found: dict[int, torch.Tensor] = {}
        for peer, rank in enumerate(group.ranks):
            if peer != group.group_rank:
                theirs = range(peer, self.race.layers, self.race.ranks)
                stored = dict.fromkeys(theirs, (self.race.layer_bytes,))
                parts = exports.open(rank, handles[peer], stored)
                found |= {layer_id: part for layer_id, (part,) in parts.items()}
        return [found.get(layer_id) for layer_id in range(self.race.layers)]

    def pulls(self, in_flight: int) -> float:
        """Seconds of the bare copies of the same bytes out of their owners' memory."""
        windows = [window.flatten().view(torch.uint8) for window in self._windows(in_flight)]
        self._meet()
        started = time.perf_counter()
        for layer_id, source in enumerate(self._sources):
            if source is not None:
                windows[layer_id % in_flight].copy_(source, non_blocking=True)
        self.compute.finish()
        return self._slowest(time.perf_counter() - started, 0.0)[0]

    def _windows(self, count: int) -> list[torch.Tensor]:
        """Slots whose pages are there."""
        return [torch.zeros_like(self._weights[0]) for _ in range(count)]

    def fetch(self, in_flight: int) -> float:
        """Seconds of the bare broadcasts of all layers, each from its owner's into a window.

        From the memory of all layers: a few that stay in the caches would arrive sooner.
        """
        windows = self._windows(in_flight)
        self._meet()
        started = time.perf_counter()
        works: list[Any] = []
        for layer_id, weight in enumerate(self._weights):
            if len(works) == in_flight:
                works.pop(0).wait()
            owner = layer_id % self.race.ranks
            moved = weight if owner == dist.get_rank() else windows[layer_id % in_flight]
            works.append(dist.broadcast(moved, src=owner, async_op=True))
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
        """Of each round: the fetches alone, and everybody's seconds and compute by name.

        `pulls` are the bare pulls, 0 where nobody pulls; `unsharded` has all weights in place.
        """
        found = []
        before, pulls_before = self._fetches(step + 1)
        for turn in range(self.race.rounds):
            half_s = before / self.race.layers / ratio / 2
            first = turn % len(everybody)
            times = {
                one.name: self.forward(one, half_s) for one in everybody[first:] + everybody[:first]
            }
            unsharded = self.forward(self._unsharded, half_s)
            after, pulls_after = self._fetches(step + 1)
            found.append(
                {
                    "fetch": (before + after) / 2,
                    "pulls": (pulls_before + pulls_after) / 2,
                    "times": times,
                    "unsharded": unsharded,
                }
            )
            before, pulls_before = after, pulls_after
        return found

    def _fetches(self, in_flight: int) -> tuple[float, float]:
        return self.fetch(in_flight), self.pulls(in_flight) if self._sources else 0.0
