"""SmallTensors: what every rank stores beside the large tensors, compared among the ranks.

Ranks that do not wait for each other load every weight themselves, process it, and keep its small
tensors. These are alike as long as all ranks have loaded the same checkpoint, and have processed it
alike; here both are seen.
"""

from __future__ import annotations

from torch import nn

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.ranks.first_arrivals import checksum
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.tensors import held


class SmallTensors:
    """The checksums of one series on this rank. A group in lockstep needs none: it broadcasts."""

    def __init__(self, group: Group, plan: SeriesPlan) -> None:
        self._group = group
        self._plan = plan
        self._sums: dict[int, int] = {}

    def note(self, position: int, module: nn.Module, large: tuple[str, ...]) -> None:
        """What a processed module holds beside its large tensors."""
        if not self._group.lockstep:
            small = [t for name, t in sorted(held(module).items()) if name not in large]
            self._sums[position] = checksum(small)

    def compare(self) -> None:
        """Return if all ranks noted the same. Gathers, where they loaded them each for itself.

        Raises:
            MismatchError: names the first layer at which a rank differs from the loader.
        """
        if self._group.lockstep or not self._plan.moves:
            return
        told = self._group.gather({str(p): crc for p, crc in self._sums.items()})
        for position, loader in enumerate(self._plan.loader):
            key = str(position)
            for rank, sums in zip(self._group.ranks, told, strict=True):
                if sums[key] != told[loader][key]:
                    raise MismatchError(
                        f"rank {rank}: {self._plan.layer_name(position)} has other scales, biases "
                        f"or other small tensors than on rank {self._group.ranks[loader]}: the "
                        "replicas were not given the same checkpoint, or its quantisation makes "
                        "others of it on each of them; leave the series out"
                    )
