"""`layershard compare`: several layouts of one model side by side."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from layershard_cli import flags as flag
from layershard_cli.output import emit, emit_json
from layershard_cli.render.units import size
from layershard_cli.resolve import Options, config_of
from vllm_layershard.config import Placement
from vllm_layershard.errors import ConfigError, PlanError
from vllm_layershard.estimate import DEFAULT, Hardware, profile
from vllm_layershard.estimate.capacity import UTILIZATION, Capacity, capacity
from vllm_layershard.estimate.transfer import require_one_node
from vllm_layershard.models import Deployment, Model, load_model, plan_model, require_experts
from vllm_layershard.plan import ParallelLayout

_PART = re.compile(r"(tp|dp|pp)([1-9]\d{0,3})", re.ASCII)
_WORDS = ("ep", "shard", "striped")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layout as it was asked for; `placement` is None where it is not sharded."""

    name: str
    deployment: Deployment
    placement: Placement | None


def read_layout(text: str) -> Candidate:
    """`tp8`, `dp8+ep`, `tp2dp4+ep+shard`, `dp8+ep+striped`.

    Raises:
        ConfigError: anything else.
    """
    sizes_text, *words = text.strip().lower().split("+")
    parts = _PART.findall(sizes_text)
    whole = "".join(name + size for name, size in parts) == sizes_text and bool(parts)
    names = [name for name, _ in parts]
    if not whole or len(set(names)) < len(names) or not set(words) <= set(_WORDS):
        raise ConfigError(
            f"--layout {text!r}: write sizes of tp, dp and pp, then +ep and +shard or +striped "
            "where wanted, such as tp8, dp8+ep or tp2dp4+ep+shard"
        )
    sizes = {name: int(size) for name, size in parts}
    layout = ParallelLayout(sizes.get("tp", 1), sizes.get("dp", 1), 1, sizes.get("pp", 1))
    placement: Placement | None = "round_robin" if "shard" in words else None
    placement = "striped" if "striped" in words else placement
    return Candidate(text, Deployment(layout, ep="ep" in words), placement)


def compare_command(
    model: flag.ModelName,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            help="A layout such as tp8, dp8+ep or tp2dp4+ep+shard (+striped: with a part of every "
            "layer on each rank); repeat it.  [default: tp8, dp8+ep, dp8+ep+shard]",
        ),
    ] = None,
    layers: flag.LayersNamed = None,
    prefetch_step: flag.PrefetchStep = None,
    hardware: flag.HardwareName = None,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    as_json: flag.AsJson = False,
) -> None:
    """Which layout of a model holds the most KV-cache tokens.

    Example: layershard compare --model DeepSeek-V3 --hardware H200
    """
    found = load_model(model)
    device = profile(DEFAULT if hardware is None else hardware)
    ep = "+ep" if found.is_moe else ""
    asked = layout or ["tp8", f"dp8{ep}", f"dp8{ep}+shard"]
    candidates = [read_layout(text) for text in asked]
    options = Options(prefetch_step=prefetch_step)
    counted: dict[str, Capacity | str] = {}
    for candidate in candidates:
        try:
            require_experts(found, candidate.deployment)
            saved = _saving(found, candidate, device, layers, options)
            counted[candidate.name] = capacity(
                found, candidate.deployment, device, saved, kv_cache_dtype
            )
        except PlanError as error:
            if layout is not None:
                raise
            counted[candidate.name] = str(error)
    notes = _notes(device, hardware is None)
    if as_json:
        emit_json(_document(found, device, counted, notes))
    else:
        _print(found, device, counted, notes)


def _saving(
    model: Model,
    candidate: Candidate,
    device: Hardware,
    layers: list[str] | None,
    options: Options,
) -> Callable[[int], int]:
    """What sharding saves on each rank; nothing where it is not asked for."""
    if candidate.placement is None:
        return lambda rank: 0
    asked = options._replace(placement=candidate.placement)
    config = config_of(layers, model, candidate.deployment, asked)
    sharding = plan_model(model, candidate.deployment, config)
    require_one_node(sharding, device)
    return sharding.saved_bytes.__getitem__


def _notes(device: Hardware, assumed: bool) -> tuple[str, ...]:
    return (
        *([f"assumed {device.name} devices; give --hardware"] if assumed else []),
        f"{UTILIZATION:.0%} of the memory is vLLM's (its default); activations, graphs and the "
        "driver's share are not counted, so that a server holds somewhat fewer tokens",
    )


def _document(
    model: Model, device: Hardware, counted: dict[str, Capacity | str], notes: tuple[str, ...]
) -> dict[str, object]:
    return {
        "schema_version": 1,
        "model": {"name": model.name, "source": model.source},
        "hardware": device.name,
        "layouts": [
            {"layout": name, "refused": found}
            if isinstance(found, str)
            else {
                "layout": name,
                "fits": found.fits,
                "weight_bytes": found.weight_bytes,
                "room_bytes": found.room_bytes,
                "engines": found.engines,
                "engine_tokens": found.engine_tokens,
                "tokens": found.tokens,
            }
            for name, found in counted.items()
        ],
        "warnings": list(notes),
    }


def _print(
    model: Model, device: Hardware, counted: dict[str, Capacity | str], notes: tuple[str, ...]
) -> None:
    memory = device.memory_bytes
    assert memory is not None, "capacity refuses a device without"
    emit(f"{model.name} on {device.name} ({size(int(memory.value))} a device)")
    width = max(len("layout"), *(len(name) for name in counted))
    head = f"{'layout':{width}}  {'weights a rank':>14}  {'room for KV':>12}"
    emit(f"{head}  {'tokens an engine':>16}  {'tokens in all':>13}")
    most = max((c.tokens for c in counted.values() if isinstance(c, Capacity)), default=0)
    for name, found in counted.items():
        if isinstance(found, str):
            emit(f"{name:{width}}  refused: {found}")
            continue
        room = size(found.room_bytes) if found.fits else "does not fit"
        best = "  <- most" if found.tokens == most and most else ""
        emit(
            f"{name:{width}}  {size(found.weight_bytes):>14}  {room:>12}  "
            f"{found.engine_tokens:>16,}  {found.tokens:>13,}{best}"
        )
    for note in notes:
        emit(f"note: {note}")
