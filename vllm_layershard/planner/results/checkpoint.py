"""StoredCheckpoint: what a model's files store, beside what the plan expects."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models import Evidence, Sharding


class StoredSeries(NamedTuple):
    """The linears of a series in one pipeline stage, and the bytes that the files hold of them."""

    name: str
    pp_stage: int
    linears: int
    stored_bytes: int


class Disagreement(NamedTuple):
    """A tensor, what the config makes of it, and what the files store."""

    tensor: str
    expected: str
    stored: str


class StoredCheckpoint(NamedTuple):
    """A checkpoint by its safetensors headers; `source` says where those came from.

    `draft_bytes` are those of draft (MTP) layers, which the model itself does not load.
    """

    source: str | None
    files: int
    tensors: int
    bytes: int
    draft_bytes: int
    series: tuple[StoredSeries, ...]
    disagreements: tuple[Disagreement, ...]


def checkpoint_of(sharding: Sharding, evidence: Evidence) -> StoredCheckpoint | None:
    """What the model's files store; None where their headers were not read."""
    comparison = evidence.comparison
    if comparison is None:
        return None
    return StoredCheckpoint(
        source=evidence.headers,
        files=len(comparison.checkpoint.files),
        tensors=len(comparison.checkpoint.tensors),
        bytes=comparison.checkpoint.nbytes,
        draft_bytes=comparison.draft_bytes,
        series=tuple(
            StoredSeries(
                name=series_plan.series.name,
                pp_stage=group.pp_stage,
                linears=len(prefixes),
                stored_bytes=comparison.stored_bytes(prefixes),
            )
            for group in sharding.groups
            for series_plan, prefixes in zip(group.plan.series, group.prefixes, strict=True)
        ),
        disagreements=tuple(
            Disagreement(one.tensor, one.expected, one.stored) for one in comparison.disagreements
        ),
    )
