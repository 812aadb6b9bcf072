"""Capacity: whether the weights fit, how many KV-cache tokens do then, and which rank limits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.taken import beside_taken, taken_by
from vllm_layershard.models import CacheDevice, Deployment, Model, Sharding, rank_weight_bytes
from vllm_layershard.plan import stage_layers

UTILIZATION: Final = 0.92
"""The share of the memory that vLLM takes. Source: vLLM 0.32, config/cache.py, default of
`gpu_memory_utilization`."""


def budget_of(hardware: Hardware) -> int | None:
    """Bytes that vLLM takes of a device's memory; None where that is not known."""
    memory = hardware.memory_bytes
    return None if memory is None else int(memory.value * UTILIZATION)


def cache_device_of(hardware: Hardware) -> CacheDevice:
    """What decides the form of the cache: a device with fp8 and no compute capability has ROCm."""
    step = _step_tokens(hardware)
    if hardware.compute_capability is not None:
        return CacheDevice(int(hardware.compute_capability.value), step_tokens=step)
    return CacheDevice(None, rocm=hardware.low_bit_format == "fp8", step_tokens=step)


def _step_tokens(hardware: Hardware) -> int:
    """Tokens that a server schedules in one step, unless it is told otherwise.

    Source: vLLM 0.32, engine/arg_utils.py, `get_batch_defaults`.
    """
    memory = hardware.memory_bytes
    if memory is None:
        return CacheDevice().step_tokens
    if memory.value >= 160 << 30:
        return 16384
    name = hardware.base or hardware.name
    return 8192 if memory.value >= 70 << 30 and "a100" not in name.lower() else 2048


def have_room(weight_bytes: int, room_bytes: int) -> bool:
    """Whether a rank's weights fit: they leave something of the room to the KV cache."""
    return weight_bytes < room_bytes


class Fit(NamedTuple):
    """The weights of the fullest rank beside what vLLM takes of a device's memory, in bytes.

    `sharded_bytes` are of the rank that is fullest with sharding, and have in them what its private
    communicators keep and the `gathered_bytes` of its activations.
    """

    room_bytes: int
    replicated_bytes: int
    sharded_bytes: int
    gathered_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether every rank has room for its weights, with layer sharding."""
        return have_room(self.sharded_bytes, self.room_bytes)

    @property
    def fits_without_sharding(self) -> bool:
        """Whether every rank has room for its weights without layer sharding."""
        return have_room(self.replicated_bytes, self.room_bytes)


def fit_of(sharding: Sharding, hardware: Hardware) -> Fit | None:
    """Compare the weights of every rank with the device; None where its memory is not known.

    vLLM's own activations, graphs and what the driver takes are not counted.
    """
    room = budget_of(hardware)
    if room is None:
        return None
    held = [bytes_of.total for bytes_of in sharding.weight_bytes]
    taken = taken_by(sharding, hardware)
    sides = zip(held, sharding.saved_bytes, taken.total, taken.gathered, strict=True)
    sharded, gathered = max((h - s + t, g) for h, s, t, g in sides)
    return Fit(room, max(held), sharded, gathered)


def may_fit(fit: Fit | None) -> bool:
    """False where the weights are known not to fit, so that there is nothing to launch."""
    return fit is None or fit.fits


def exceeding(fit: Fit, hardware: Hardware) -> str:
    """What weights that do not fit exceed, in words: both sizes of a rank and the device's room."""
    gathered = fit.gathered_bytes / 2**30
    beside = f" with {gathered:,.1f} GiB of gathered activations" if gathered else ""
    return (
        f"the weights of one rank ({fit.replicated_bytes / 2**30:,.1f} GiB, sharded "
        f"{fit.sharded_bytes / 2**30:,.1f} GiB{beside}) exceed the "
        f"{fit.room_bytes / 2**30:,.1f} GiB that vLLM takes on {hardware.name} "
        f"({UTILIZATION:.0%} of its memory)"
    )


class Capacity(NamedTuple):
    """What one deployment holds; per-rank figures are those of the rank that limits the cache.

    That is the rank with room for the fewest tokens; the fullest one, where no rank keeps anything
    of a token. `fits` holds for every rank.

    `engines` have a KV cache of their own each, of `engine_tokens`. vLLM's own activations, graphs
    and what the driver takes are not counted, so that a server holds somewhat fewer.
    """

    weight_bytes: int
    room_bytes: int
    engines: int
    engine_tokens: int
    fits: bool

    @property
    def tokens(self) -> int:
        """KV-cache tokens of the whole deployment."""
        return self.engines * self.engine_tokens


def capacity(
    model: Model,
    deployment: Deployment,
    hardware: Hardware,
    saved_bytes: Callable[[int], int],
    kv_cache_dtype: str,
    taken_bytes: Sequence[int] | None = None,
) -> Capacity:
    """Count it.

    `saved_bytes(rank)` is what sharding saves on a global rank, `taken_bytes[rank]` what it
    takes there beside weights (`Taken.total`; None: nothing).

    Every data-parallel rank is an engine; the ranks of one share each token's cache by heads and
    layers, so that an engine holds what its tightest rank does. A rank whose layers keep nothing
    limits none.

    Raises:
        HardwareError: the hardware's memory is not known.
    """
    budget = budget_of(hardware)
    if budget is None:
        raise HardwareError(
            f"--hardware {hardware.name}: its memory is not known; give it in a profile "
            "(--hardware FILE.json)"
        )
    held = [
        weights.total - saved_bytes(rank)
        for rank, weights in enumerate(rank_weight_bytes(model, deployment))
    ]
    taken = taken_bytes or [0] * len(held)
    room = [budget - weights - more for weights, more in zip(held, taken, strict=True)]
    tokens = rank_tokens(room, model, deployment, kv_cache_dtype)
    rank = tightest(tokens, [-free for free in room])
    return Capacity(
        weight_bytes=held[rank],
        room_bytes=room[rank],
        engines=deployment.layout.dp,
        engine_tokens=tokens[rank] or 0,
        fits=min(room) > 0,
    )


def rank_tokens(
    room: Sequence[int], model: Model, deployment: Deployment, kv_cache_dtype: str
) -> tuple[int | None, ...]:
    """The tokens that each global rank has room for in its bytes of `room`; None: it limits none.

    Raises:
        ConfigError: a cache dtype that is not known for this model.
        ModelError: its checkpoint asks for one.
        HardwareError: no backend of vLLM takes its attention on this device.
        PlanError: vllm-ascend serves no states of these bytes.
    """
    layout = deployment.layout
    stages = stage_layers(model.num_layers, layout.pp)
    known: dict[tuple[int, int], int | None] = {}
    for rank, free in enumerate(room):
        stage = layout.stage_of(rank)
        if (stage, free) not in known:
            known[stage, free] = model.cache_tokens(free, kv_cache_dtype, stages[stage], deployment)
    return tuple(known[layout.stage_of(rank), free] for rank, free in enumerate(room))


def tightest(tokens: Sequence[int | None], *held: Sequence[int]) -> int:
    """The rank with the fewest tokens; of several, the one that holds most.

    Ranks that limit no token are passed over, if there are others.
    """
    limiting = [rank for rank, found in enumerate(tokens) if found is not None]
    ranks = limiting or range(len(tokens))
    return min(ranks, key=lambda rank: (tokens[rank] or 0, *(-of[rank] for of in held)))


class CacheLimit(NamedTuple):
    """The rank with room for the fewest tokens with sharding, and the one without.

    Both are the rank that gains the fewest tokens where the device's memory is not known. Where the
    weights do not fit without sharding, `rank_without` is `rank`.

    `tokens_gained`: what an engine holds more, as `capacity` counts it. Where one of the two does
    not fit, or the memory is not known, what every rank gains. Negative: it loses them.
    """

    rank: int
    rank_without: int
    tokens_gained: int


def limit_of(sharding: Sharding, hardware: Hardware, kv_cache_dtype: str) -> CacheLimit:
    """Find it, with what is taken beside weights subtracted from what each rank saves.

    Raises:
        ConfigError: a cache dtype that is not known for this model.
        ModelError: its checkpoint asks for one.
        HardwareError: no backend of vLLM takes its attention on this device.
        PlanError: vllm-ascend serves no states of these bytes.
    """
    sharding = beside_taken(sharding, hardware)
    saved = sharding.saved_bytes
    plain = [bytes_of.total for bytes_of in sharding.weight_bytes]
    held = [weights - more for weights, more in zip(plain, saved, strict=True)]
    gains = _gains(sharding, kv_cache_dtype)
    least = tightest(gains, [-more for more in saved], plain)
    budget = budget_of(hardware)
    if budget is None:
        return CacheLimit(least, least, gains[least] or 0)
    counts = (sharding.model, sharding.deployment, kv_cache_dtype)
    after = rank_tokens([budget - weights for weights in held], *counts)
    last = tightest(after, held)
    if not have_room(max(*plain, *held), budget):
        return CacheLimit(last, last, gains[least] or 0)
    before = rank_tokens([budget - weights for weights in plain], *counts)
    first = tightest(before, plain)
    if before[first] == before[last]:
        first = last  # both limit it
    return CacheLimit(last, first, (after[last] or 0) - (before[first] or 0))


def _gains(sharding: Sharding, kv_cache_dtype: str) -> tuple[int | None, ...]:
    """Tokens that each rank alone has room for in what it saves, in whole blocks."""
    saved = sharding.saved_bytes
    sizes = [abs(more) for more in saved]
    found = rank_tokens(sizes, sharding.model, sharding.deployment, kv_cache_dtype)
    return tuple(
        None if tokens is None else tokens if more >= 0 else -tokens
        for tokens, more in zip(found, saved, strict=True)
    )
