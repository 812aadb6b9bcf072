"""Taken: what layer sharding takes of a device beside weights, so that no cache has it."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate.communicators import communicator_bytes
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Sharding


class Taken(NamedTuple):
    """Bytes by global rank: of private communicators, and of activations that are gathered.

    vLLM's own peak of activations is not among them: nobody knows it before a profile run.
    """

    communicators: tuple[int, ...]
    gathered: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """All that a rank cannot give to its cache."""
        return tuple(map(sum, zip(self.communicators, self.gathered, strict=True)))

    @property
    def said(self) -> str:
        """What it is, for a person; empty where nothing is taken."""
        kinds = (
            ("private communicators", self.communicators),
            ("gathered activations", self.gathered),
        )
        return " and ".join(name for name, nbytes in kinds if any(nbytes))


def taken_by(sharding: Sharding, hardware: Hardware) -> Taken:
    """What this sharding takes while it serves."""
    return Taken(communicator_bytes(sharding, hardware), _gathered(sharding, hardware))


def beside_taken(sharding: Sharding, hardware: Hardware) -> Sharding:
    """The sharding, with what it takes beside weights subtracted from what each rank saves."""
    taken = taken_by(sharding, hardware).total
    if not any(taken):
        return sharding
    saved = tuple(s - t for s, t in zip(sharding.saved_bytes, taken, strict=True))
    return sharding._replace(saved_bytes=saved)


def _gathered(sharding: Sharding, hardware: Hardware) -> tuple[int, ...]:
    """For linears or MLPs, one after another: what is gathered for one is gone before the next."""
    found = (0,) * sharding.deployment.layout.world_size
    if sharding.config.move != "weights":
        from vllm_layershard.estimate.moved.gathered import gathered_bytes  # seldom asked for
        from vllm_layershard.estimate.moved.linears import moved_linears

        found = gathered_bytes(sharding, moved_linears(sharding, hardware))
    if sharding.split_mlps:
        from vllm_layershard.estimate.moved.dense_mlps import gathered_for_mlps

        found = tuple(map(max, found, gathered_for_mlps(sharding)))
    return found
