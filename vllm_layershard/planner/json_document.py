"""Document: a plan and a map as JSON, schema_version 1. Keys are added, never renamed."""

from __future__ import annotations

from typing import Any

from vllm_layershard.estimate import Abstention, Estimate, Forecast, Phase, PhaseName
from vllm_layershard.estimate.capacity import may_fit
from vllm_layershard.models import Batch, Evidence, GroupPlan, Sharding
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.planner.serve_command import launch_command
from vllm_layershard.version import __version__

SCHEMA_VERSION = 1


def plan_document(
    sharding: Sharding,
    forecast: Forecast,
    kv_cache_dtype: str,
    warnings: tuple[str, ...],
    evidence: Evidence,
) -> dict[str, Any]:
    """`layershard plan --json`."""
    rank = sharding.binding_rank
    saved = sharding.saved_bytes[rank]
    held = sharding.weight_bytes[rank]
    return {
        **_heading(sharding, evidence),
        "series": [
            _series(group, series_plan)
            for group in sharding.groups
            for series_plan in group.plan.series
        ],
        "checkpoint": _checkpoint(sharding, evidence),
        "memory": {
            "weight_bytes_replicated": held.total,
            "weight_bytes_sharded": held.total - saved,
            "saved_bytes_min": saved,
            "saved_bytes_max": max(sharding.saved_bytes),
            "binding_rank": rank,
            "weight_bytes_parts": {
                "embedding": held.embedding,
                "head": held.head,
                "linears": held.linears,
                "experts": held.experts,
                "norms": held.norms,
                "derived": held.derived,
            },
            "saved_bytes": list(sharding.saved_bytes),
            "fits": None if forecast.fit is None else forecast.fit.fits,
            "fits_without_sharding": (
                None if forecast.fit is None else forecast.fit.fits_without_sharding
            ),
        },
        "kv_cache": {
            "dtype": sharding.model.cache_dtype(kv_cache_dtype),
            "bytes_per_token": max(
                sharding.kv_bytes_per_token(kv_cache_dtype, r)
                for r in range(sharding.deployment.layout.world_size)
            ),
            "state_bytes_per_sequence": max(
                sharding.state_bytes_per_sequence(r)
                for r in range(sharding.deployment.layout.world_size)
            ),
            "tokens_gained": sharding.tokens_gained(kv_cache_dtype),
        },
        "prefetch": _prefetch(forecast),
        "basis": {
            "series": "exact",
            "memory.saved_bytes_min": "exact",
            "memory.weight_bytes_replicated": "formula",
            "kv_cache": "formula",
            "prefetch": "assumed",
            "prefetch.phases.fetch_us": (
                forecast.movement_basis if isinstance(forecast, Estimate) else "assumed"
            ),
        },
        "groups": [_group(group) for group in sharding.groups],
        "launch": launch_command(sharding, kv_cache_dtype) if may_fit(forecast.fit) else None,
        "warnings": list(warnings),
    }


def map_document(
    sharding: Sharding, warnings: tuple[str, ...], evidence: Evidence
) -> dict[str, Any]:
    """`layershard map --json`: for each group which rank keeps which layer.

    Every rank keeps a series' `kept_layer`. Where layers are striped no rank owns one (owner -2),
    and `stripes` has the first byte, and the one after the last, that each group rank keeps of
    every layer.
    """
    return {
        **_heading(sharding, evidence),
        "groups": [
            {
                **_group(group),
                "series": [
                    {
                        "name": series_plan.series.name,
                        "layer_ids": list(series_plan.series.layer_ids),
                        "kept_layer": series_plan.series.kept_layer,
                        "owner": list(series_plan.owner),
                        "stripes": [list(stripe) for stripe in series_plan.stripes],
                        "owned_layers": [
                            list(series_plan.owned_layers(rank))
                            for rank in range(group.plan.group_size)
                        ],
                    }
                    for series_plan in group.plan.series
                ],
            }
            for group in sharding.groups
        ],
        "warnings": list(warnings),
    }


def _heading(sharding: Sharding, evidence: Evidence) -> dict[str, Any]:
    model, layout, config = sharding.model, sharding.deployment.layout, sharding.config
    return {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "model": {
            "name": model.name,
            "source": model.source,
            "revision": evidence.revision,
            "architecture": model.architecture,
            "num_layers": model.num_layers,
            "dtype": model.dtype,
            "quantization": model.quantization,
        },
        "parallel": {
            "tp": layout.tp,
            "dp": layout.dp,
            "pcp": layout.pcp,
            "pp": layout.pp,
            "ep": sharding.deployment.ep,
        },
        "sharding": {
            "layers": list(config.layers),
            "prefetch_step": config.prefetch_step,
            "layer_stride": config.layer_stride,
            "keep_first": config.keep_first,
            "placement": config.placement,
            "transport": config.transport,
            "movement": sharding.transport_name,
            "slice_bytes": config.slice_bytes,
        },
    }


def _checkpoint(sharding: Sharding, evidence: Evidence) -> dict[str, Any] | None:
    """What the model's files store; null where their headers were not read."""
    comparison = evidence.comparison
    if comparison is None:
        return None
    return {
        "source": evidence.headers,
        "files": len(comparison.checkpoint.files),
        "tensors": len(comparison.checkpoint.tensors),
        "bytes": comparison.checkpoint.nbytes,
        "draft_bytes": comparison.draft_bytes,
        "series": [
            {
                "name": series_plan.series.name,
                "pp_stage": group.pp_stage,
                "linears": len(prefixes),
                "stored_bytes": comparison.stored_bytes(prefixes),
            }
            for group in sharding.groups
            for series_plan, prefixes in zip(group.plan.series, group.prefixes, strict=True)
        ],
        "disagreements": [
            {"tensor": one.tensor, "expected": one.expected, "stored": one.stored}
            for one in comparison.disagreements
        ],
    }


def _series(group: GroupPlan, series_plan: SeriesPlan) -> dict[str, Any]:
    series, ledger = series_plan.series, series_plan.ledger
    return {
        "name": series.name,
        "pp_stage": group.pp_stage,
        "group_size": group.plan.group_size,
        "layer_ids": list(series.layer_ids),
        "kept_layer": series.kept_layer,
        "layer_bytes": series.layer_bytes,
        "small_bytes": series.small_bytes,
        "replicated_bytes": ledger.replicated_bytes,
        "num_slots": series_plan.schedule.num_slots,
        "slot_bytes": ledger.slot_bytes,
        "owner": list(series_plan.owner),
        "stripes": [list(stripe) for stripe in series_plan.stripes],
        "resident_bytes": list(ledger.resident_bytes),
        "saved_bytes": list(ledger.saved_bytes),
        "tp_replicated": series.tp_replicated,
        "layout": series.layout,
    }


def _prefetch(forecast: Forecast) -> dict[str, Any]:
    """What is estimated; null, or empty, where a number is lacking."""
    match forecast:
        case Estimate():
            return {
                "recommended_step": forecast.recommended_step,
                "verdict": forecast.verdict,
                "phases": [_phase(phase) for phase in forecast.phases],
                "break_even_tokens": forecast.break_even_tokens,
                "hardware": forecast.hardware.name,
                "assumptions": list(forecast.assumptions),
                "sources": list(forecast.hardware.sources),
                "lacking": [],
            }
        case Abstention():
            return {
                "recommended_step": None,
                "verdict": forecast.verdict,
                "phases": [_unknown(name, batch) for name, batch in forecast.batches.items()],
                "break_even_tokens": None,
                "hardware": forecast.hardware.name,
                "assumptions": [],
                "sources": list(forecast.hardware.sources),
                "lacking": list(forecast.lacking),
            }


def _phase(phase: Phase) -> dict[str, Any]:
    """The time with `keep_first` is null where that is not worth it."""
    forward, kept = phase.asked.forward, phase.kept
    return {
        **_unknown(phase.name, phase.batch),
        "compute_us": round(forward.compute * 1e6, 1),
        "fetch_us": round(forward.fetch * 1e6, 1),
        "exposed_us": round(forward.exposed * 1e6, 1),
        "stalled_us": round(forward.stalled * 1e6, 1),
        "link_bound": forward.link_bound,
        "hidden": phase.hidden,
        "recommended_step": phase.best.step,
        "keep_first_exposed_us": None if kept is None else round(kept.forward.exposed * 1e6, 1),
    }


_ESTIMATED = (
    "compute_us",
    "fetch_us",
    "exposed_us",
    "stalled_us",
    "link_bound",
    "hidden",
    "recommended_step",
    "keep_first_exposed_us",
)


def _unknown(name: PhaseName, batch: Batch) -> dict[str, Any]:
    """A phase of which nothing is estimated."""
    asked = {"phase": name, "tokens": batch.tokens, "context": batch.context}
    return {**asked, **dict.fromkeys(_ESTIMATED)}


def _group(group: GroupPlan) -> dict[str, Any]:
    return {
        "pp_stage": group.pp_stage,
        "tp_replicated": group.tp_replicated,
        "ranks": [list(ranks) for ranks in group.ranks],
        "digest": group.plan.digest(),
    }
