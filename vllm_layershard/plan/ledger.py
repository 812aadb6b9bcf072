"""Ledger: the bytes of one series, on each rank of its group."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.plan.placement import EVERY_RANK
from vllm_layershard.plan.rows import Stripe
from vllm_layershard.plan.series import Series


class Ledger(NamedTuple):
    """What moves, in bytes; small tensors stay on every rank and are not in here.

    `replicated_bytes` without sharding, `resident_bytes[r]` what rank r owns, `slot_bytes` all
    slots of a rank, `saved_bytes[r]` = replicated - resident - slots. A rank may save less than
    nothing: a short series with many slots does.
    """

    replicated_bytes: int
    resident_bytes: tuple[int, ...]
    slot_bytes: int
    saved_bytes: tuple[int, ...]


def ledger_of(
    series: Series,
    owner: tuple[int, ...],
    stripes: tuple[Stripe, ...],
    group_size: int,
    num_slots: int,
) -> Ledger:
    """Add up one series; `stripes` are each rank's of a layer, or none."""
    replicated_bytes = len(series) * series.layer_bytes
    slot_bytes = num_slots * series.layer_bytes
    resident_bytes = tuple(
        sum(series.layer_bytes for o in owner if o in (rank, EVERY_RANK))
        for rank in range(group_size)
    )
    if stripes:
        resident_bytes = tuple(len(series) * (end - start) for start, end in stripes)
    return Ledger(
        replicated_bytes=replicated_bytes,
        resident_bytes=resident_bytes,
        slot_bytes=slot_bytes,
        saved_bytes=tuple(replicated_bytes - held - slot_bytes for held in resident_bytes),
    )
