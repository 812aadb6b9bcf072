"""Memory: the bytes of a plan, by series and by rank, and what they mean for the KV cache."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate import Forecast
from vllm_layershard.estimate.capacity import CacheLimit
from vllm_layershard.estimate.communicators import communicators_of
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.models import GroupPlan, Sharding, WeightBytes, cache_name
from vllm_layershard.plan import SeriesPlan, Stripe


class SeriesBytes(NamedTuple):
    """One series of one pipeline stage. Lists of bytes and of stripes are by group rank.

    Every rank keeps `kept_layer`; None: none is kept. `owner` has a group rank for each layer, -1
    where every rank stores it, and -2 where it is striped. A stripe is its first byte and the one
    after its last.
    """

    name: str
    pp_stage: int
    group_size: int
    layer_ids: tuple[int, ...]
    kept_layer: int | None
    layer_bytes: int
    small_bytes: int
    replicated_bytes: int
    num_slots: int
    slot_bytes: int
    owner: tuple[int, ...]
    stripes: tuple[Stripe, ...]
    resident_bytes: tuple[int, ...]
    saved_bytes: tuple[int, ...]
    tp_replicated: bool
    layout: str


class Memory(NamedTuple):
    """Weights with and without sharding, of the rank that limits the KV cache: `binding_rank`.

    `saved_bytes` are by global rank, `saved_bytes_min` and `saved_bytes_max` those of all ranks.
    `fits` says whether every rank has room for its weights; None where the device's memory is not
    known.

    Private `communicators`, of the rank that has most of them, keep `communicator_bytes` of the
    device while they serve, as far as that is known. The rank that gathers most activations holds
    `gathered_bytes` of them, in the largest forward that moves any. What is saved counts neither;
    what fits and the tokens that are gained do.

    Where weights are pulled on a CPU, all ranks together take `shared_memory_bytes` of their node's
    shared memory, and each keeps up to `shared_memory_files` open there; None without pulls.
    """

    weight_bytes_replicated: int
    weight_bytes_sharded: int
    saved_bytes_min: int
    saved_bytes_max: int
    binding_rank: int
    weight_bytes_parts: WeightBytes
    saved_bytes: tuple[int, ...]
    fits: bool | None
    fits_without_sharding: bool | None
    shared_memory_bytes: int | None
    shared_memory_files: int | None
    communicators: int
    communicator_bytes: int
    gathered_bytes: int


class KvCache(NamedTuple):
    """The cache's dtype, its bytes on the rank that limits it, and the tokens that are gained."""

    dtype: str
    bytes_per_token: int
    state_bytes_per_sequence: int
    tokens_gained: int


def series_bytes(group: GroupPlan, series_plan: SeriesPlan) -> SeriesBytes:
    """The ledger of a series."""
    series, ledger = series_plan.series, series_plan.ledger
    return SeriesBytes(
        name=series.name,
        pp_stage=group.pp_stage,
        group_size=group.plan.group_size,
        layer_ids=series.layer_ids,
        kept_layer=series.kept_layer,
        layer_bytes=series.layer_bytes,
        small_bytes=series.small_bytes,
        replicated_bytes=ledger.replicated_bytes,
        num_slots=series_plan.schedule.num_slots,
        slot_bytes=ledger.slot_bytes,
        owner=series_plan.owner,
        stripes=series_plan.stripes,
        resident_bytes=ledger.resident_bytes,
        saved_bytes=ledger.saved_bytes,
        tp_replicated=series.tp_replicated,
        layout=series.layout,
    )


def memory_of(sharding: Sharding, forecast: Forecast, limit: CacheLimit) -> Memory:
    """The weights of every rank."""
    fit, kept = forecast.fit, communicators_of(sharding, forecast.hardware)
    rank = limit.rank
    saved, held = sharding.saved_bytes[rank], sharding.weight_bytes[rank]
    needs = sharding.shared_needs
    return Memory(
        weight_bytes_replicated=held.total,
        weight_bytes_sharded=held.total - saved,
        saved_bytes_min=min(sharding.saved_bytes),
        saved_bytes_max=max(sharding.saved_bytes),
        binding_rank=rank,
        weight_bytes_parts=held,
        saved_bytes=sharding.saved_bytes,
        fits=None if fit is None else fit.fits,
        fits_without_sharding=None if fit is None else fit.fits_without_sharding,
        shared_memory_bytes=sum(need.nbytes for need in needs) if needs else None,
        shared_memory_files=max(need.pieces for need in needs) if needs else None,
        communicators=kept.number,
        communicator_bytes=kept.nbytes,
        gathered_bytes=max(taken_by(sharding, forecast.hardware).gathered),
    )


def kv_cache_of(sharding: Sharding, kv_cache_dtype: str, limit: CacheLimit) -> KvCache:
    """The cache of the whole deployment."""
    stage = sharding.deployment.layout.stage_of(limit.rank)
    return KvCache(
        dtype=cache_name(sharding.model, kv_cache_dtype),
        bytes_per_token=sharding.stage_kv_bytes(kv_cache_dtype)[stage],
        state_bytes_per_sequence=sharding.stage_state_bytes()[stage],
        tokens_gained=limit.tokens_gained,
    )
