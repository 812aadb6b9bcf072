"""Several layouts of one model side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Unpack

from vllm_layershard.config import Placement
from vllm_layershard.errors import ConfigError, HardwareError, PlanError
from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.capacity import UTILIZATION, capacity
from vllm_layershard.estimate.forwards.batches import DECODE_CONTEXT, PREFILL_TOKENS
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.estimate.transfer import require_one_node
from vllm_layershard.estimate.wording import layers as so_many
from vllm_layershard.models import (
    Deployment,
    Model,
    Sharding,
    layer_caches,
    require_experts,
    shard_model,
)
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.planner.hardware import device_of
from vllm_layershard.planner.layout import on_nodes_of
from vllm_layershard.planner.load import as_launched
from vllm_layershard.planner.options import Options, config_for, with_some_threshold
from vllm_layershard.planner.question import ModelLike, drafting, loaded, on_device, require_known
from vllm_layershard.planner.results.compare_result import (
    ComparedModel,
    CompareResult,
    LayoutCapacity,
    RefusedLayout,
)

if TYPE_CHECKING:
    from vllm_layershard.planner.results.move import LayoutMove

_PART = re.compile(r"(tp|dp|pp)([1-9]\d{0,3})", re.ASCII)
_WORDS: Final = ("ep", "shard", "striped", "exchange")


class Candidate(NamedTuple):
    """One layout as it was asked for; `placement` is None where it is not sharded.

    `exchanges`: the outputs of its attentions are whole, and its ranks exchange tokens before them.
    """

    name: str
    deployment: Deployment
    placement: Placement | None
    exchanges: bool


def read_layout(text: str) -> Candidate:
    """`tp8`, `dp8+ep`, `tp2dp4+ep+shard`, `dp8+ep+striped`, `tp8+ep+exchange+shard`.

    Raises:
        ConfigError: anything else.
    """
    sizes_text, *words = text.strip().lower().split("+") if isinstance(text, str) else ("",)
    parts = _PART.findall(sizes_text)
    whole = "".join(name + size for name, size in parts) == sizes_text and bool(parts)
    names = [name for name, _ in parts]
    if not whole or len(set(names)) < len(names) or not set(words) <= set(_WORDS):
        raise ConfigError(
            f"--layout {text!r}: write sizes of tp, dp and pp, then +ep, +exchange and +shard or "
            "+striped where wanted, such as tp8, dp8+ep or tp2dp4+ep+shard"
        )
    sizes = {name: int(size) for name, size in parts}
    layout = ParallelLayout(sizes.get("tp", 1), sizes.get("dp", 1), 1, sizes.get("pp", 1))
    placement: Placement | None = "round_robin" if "shard" in words else None
    placement = "striped" if "striped" in words else placement
    return Candidate(text, Deployment(layout, ep="ep" in words), placement, "exchange" in words)


def compare_layouts(
    model: ModelLike,
    layouts: str | Sequence[str] | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    hardware: str | Hardware | None = None,
    kv_cache_dtype: str = "auto",
    mtp: int | None = None,
    **options: Unpack[Options],
) -> CompareResult:
    """Count what each layout of a model holds, as `layershard compare` does.

    A layout is written as `tp8`, `dp8+ep`, `tp2dp4+ep+shard` or `dp8+ep+striped`; None: a few
    usual ones. `layers` and `options` say how those with `+shard` or `+striped` are sharded; their
    placement is that of the layout. In those with `+exchange` every tensor-parallel rank holds the
    outputs of the attentions whole, to exchange tokens before them; so do all ranks without
    `+shard`. With `move` "auto" and no `move_weights_from` each layout has the threshold that the
    planner finds for it.

    Raises:
        ConfigError: an argument's value is not valid.
        PlanError: a layout that is asked for does not fit the model, nor does any of the usual
            ones, or what is asked of the sharding cannot be had.
        ModelError: the model is not known or cannot be read.
        HardwareError: the device is not known, or its memory is not, or it has no class of vLLM's
            for the model's quantisation, or lacks a number that a threshold needs.
    """
    require_known(options, compare_layouts)
    for key, words in (("placement", "+shard or +striped"), ("token_exchange", "+exchange")):
        if key in options:
            raise ConfigError(f"{key}: each layout says its own; write {words}")
    device = device_of(hardware)
    asked_for = drafting(on_device(loaded(model), device), mtp)
    found = asked_for.model
    ep = "+ep" if found.is_moe else ""
    given: object = layouts
    single = layouts is not None and (isinstance(layouts, str) or not isinstance(given, Iterable))
    asked: Iterable[Any] = [given] if single else layouts or ["tp8", f"dp8{ep}", f"dp8{ep}+shard"]
    counted: dict[str, LayoutCapacity | RefusedLayout] = {}
    refused: set[Deployment] = set()
    candidates = [read_layout(text) for text in asked]
    if any(options.values()) and not any(map(_is_sharded, candidates)):
        beside = ", ".join(key for key, value in options.items() if value)
        raise ConfigError(
            f"{beside}: none of the layouts is sharded; write +shard or +striped, or leave it out"
        )
    for candidate in candidates:
        said = candidate.placement is not None and (layers is not None or any(options.values()))
        try:
            counted[candidate.name] = _counted(
                found, candidate, device, layers, options, kv_cache_dtype
            )
        except HardwareError as error:
            raise HardwareError(f"--layout {candidate.name}: {error}") from None
        except PlanError as error:
            if layouts:
                raise PlanError(f"--layout {candidate.name}: {error}") from None
            if said and candidate.deployment not in refused:
                raise
            refused.add(candidate.deployment)
            counted[candidate.name] = RefusedLayout(candidate.name, str(error))
    _require_one(counted.values())
    one = next(each for each in candidates if isinstance(counted[each.name], LayoutCapacity))
    return CompareResult(
        model=ComparedModel(found.name, found.source),
        device=device,
        layouts=tuple(counted.values()),
        warnings=(
            *asked_for.found.notes,
            *_warnings(device, hardware is None),
            *_on_sequences(found, one.deployment, kv_cache_dtype),
            *_on_drafts(found),
            *_on_move(counted.values()),
        ),
    )


def _require_one(rows: Iterable[LayoutCapacity | RefusedLayout]) -> None:
    reasons = []
    for row in rows:
        if isinstance(row, LayoutCapacity):
            return
        reasons.append(f"{row.layout}: {row.refused}")
    raise PlanError(f"none of the usual layouts can be had ({'; '.join(reasons)}); give --layout")


def _counted(
    model: Model,
    candidate: Candidate,
    device: Hardware,
    layers: str | Sequence[str] | None,
    options: Options,
    kv_cache_dtype: str,
) -> LayoutCapacity:
    require_experts(model, candidate.deployment)
    sharding = _sharded(model, candidate, device, layers, options, kv_cache_dtype)
    if sharding is None:
        held = capacity(model, candidate.deployment, device, lambda rank: 0, kv_cache_dtype)
    else:
        saved, taken = sharding.saved_bytes.__getitem__, taken_by(sharding, device).total
        held = capacity(model, sharding.deployment, device, saved, kv_cache_dtype, taken)
    return LayoutCapacity(
        layout=candidate.name,
        fits=held.fits,
        weight_bytes=held.weight_bytes,
        room_bytes=held.room_bytes,
        engines=held.engines,
        engine_tokens=held.engine_tokens,
        tokens=held.tokens,
        move=_moved(sharding, device, kv_cache_dtype),
    )


def _is_sharded(candidate: Candidate) -> bool:
    return candidate.placement is not None or candidate.exchanges


def _sharded(
    model: Model,
    candidate: Candidate,
    device: Hardware,
    layers: str | Sequence[str] | None,
    options: Options,
    kv_cache_dtype: str,
) -> Sharding | None:
    """The sharding of a layout; None where it neither shares nor exchanges."""
    if not _is_sharded(candidate):
        return None
    asked, open_threshold = with_some_threshold(options)
    asked = asked | Options(placement=candidate.placement or "replicated")
    if candidate.exchanges:
        from vllm_layershard.planner.exchange import with_exchange  # seldom asked for

        asked, layers = with_exchange(model, asked, layers)
    deployment = on_nodes_of(candidate.deployment, device)
    model = as_launched(model, deployment.layout, {})  # of steps as `plan` has them
    sharding = shard_model(model, deployment, config_for(model, deployment, layers, asked))
    require_one_node(sharding, device)
    if open_threshold:
        from vllm_layershard.planner.search.threshold import with_threshold  # seldom asked for

        sharding, _ = with_threshold(sharding, device, {}, kv_cache_dtype)
    return sharding


def _moved(sharding: Sharding | None, device: Hardware, kv_cache_dtype: str) -> LayoutMove | None:
    if sharding is None or sharding.config.move == "weights":
        return None
    from vllm_layershard.planner.results.move import layout_move_of  # seldom asked for

    return layout_move_of(sharding, device, kv_cache_dtype)


def _on_sequences(model: Model, counted: Deployment, kv_cache_dtype: str) -> Iterator[str]:
    """What stands behind the tokens where layers keep states, or the tokens of a window only."""
    caches = layer_caches(model, kv_cache_dtype, range(model.num_layers), counted)
    longest = model.blueprint.longest
    if longest is None or not caches.in_sequences(longest):
        if caches.have_windows:
            yield (
                "layers with a sliding window are counted as if they kept all of a sequence; a "
                "server keeps no more than the window, and counts more tokens"
            )
        return
    also = []
    if caches.have_states:
        also.append("also takes pages for the states of the layers with linear attention")
    if caches.have_windows:
        step = model.cache_device.step_tokens
        also.append(
            f"keeps the window of the layers that have one and {step:,} tokens "
            "(--max-num-batched-tokens, vLLM's default) for each step in flight: two steps, and "
            "one more for each further pipeline stage"
        )
    yield (
        f"tokens are counted as vLLM does, in sequences of the longest, {longest:,}: each "
        f"{' and '.join(also)}"
    )


def _on_drafts(model: Model) -> Iterator[str]:
    drafts = model.blueprint.drafts
    if model.drafted and drafts is not None:
        yield (
            f"drafts (MTP) are counted, {so_many(len(drafts.layers))} on the last stage's ranks: "
            "their weights and their cache"
        )


def _on_move(rows: Iterable[LayoutCapacity | RefusedLayout]) -> Iterator[str]:
    if any(isinstance(row, LayoutCapacity) and row.move for row in rows):
        yield (
            f"forwards that move activations: of at most {PREFILL_TOKENS:,} tokens a rank, and "
            f"decodes after {DECODE_CONTEXT:,}; what they gather is taken from the room for "
            "KV. Answers are equal to rounding only"
        )


def _warnings(device: Hardware, assumed: bool) -> tuple[str, ...]:
    return (
        *([f"assumed {device.name} devices; give --hardware"] if assumed else []),
        f"{UTILIZATION:.0%} of the memory is vLLM's (its default); its own activations, graphs and "
        "the driver's share are not counted, so that a server holds somewhat fewer tokens",
    )
