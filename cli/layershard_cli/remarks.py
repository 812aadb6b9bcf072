"""Remarks: what a user should know before launching this plan."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_layershard.estimate import Hardware
from vllm_layershard.models import Sharding
from vllm_layershard.plan import SeriesPlan


def remarks_on(sharding: Sharding, hardware: Hardware | None) -> tuple[str, ...]:
    """Series that save nothing, owners out of balance, weights that a device cannot take."""
    return (
        *_on_series(sharding),
        *_on_memory(sharding, hardware),
        *_on_format(sharding, hardware),
    )


def _on_series(sharding: Sharding) -> Iterator[str]:
    for group in sharding.groups:
        if group.plan.placement == "replicated":
            continue
        for series_plan in group.plan.series:
            name = series_plan.series.name
            if sharding.deployment.layout.pp > 1:
                name = f"{name} (pipeline stage {group.pp_stage})"
            least = min(series_plan.ledger.saved_bytes)
            if least <= 0:
                yield (
                    f"series {name} saves nothing on some rank ({least:,} bytes): it has "
                    f"{len(series_plan.series)} layers and every rank keeps "
                    f"{series_plan.schedule.num_slots} slots; lower --prefetch-step or leave it out"
                )
            yield from _on_balance(name, series_plan, group.plan.group_size)


def _on_balance(name: str, series_plan: SeriesPlan, group_size: int) -> Iterator[str]:
    counts = [len(series_plan.owned_layers(rank)) for rank in range(group_size)]
    if max(counts) - min(counts) > 1:
        yield (
            f"series {name}: owners are out of balance, ranks keep from {min(counts)} to "
            f"{max(counts)} layers; the fullest rank decides what is saved"
        )
    elif not min(counts):
        yield f"series {name}: {counts.count(0)} of {group_size} ranks own no layer of it"


def _on_memory(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    if hardware is None or hardware.memory_bytes is None:
        return
    most = max(held.total for held in sharding.weight_bytes)
    if most > hardware.memory_bytes.value:
        yield (
            f"the weights of one rank ({most / 2**30:,.1f} GiB without sharding) exceed the memory "
            f"of {hardware.name} ({hardware.memory_bytes.value / 2**30:,.1f} GiB)"
        )


def _on_format(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    if hardware is None or hardware.low_bit_format == "fp8":
        return
    if "fp8" in sharding.model.quantization:
        yield (
            f"{hardware.name} computes in int8, not in fp8: it serves the W8A8 checkpoint of this "
            "model, with as many bytes a weight but other scales; give its path for exact bytes"
        )
