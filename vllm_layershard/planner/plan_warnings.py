"""What a user should know before launching this plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.capacity import budget_of, capacity, exceeding, fit_of
from vllm_layershard.estimate.forwards.batches import running
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.estimate.wording import layers, slots
from vllm_layershard.models import Batch, Sharding, is_min_latency
from vllm_layershard.plan import Plan, SeriesPlan, select
from vllm_layershard.planner.serve_command import stands_in

_NODE = 8
"""Devices of one node, where no device is named."""


def warnings_on(sharding: Sharding, hardware: Hardware | None) -> tuple[str, ...]:
    """Series that save nothing, owners out of balance, weights that a device cannot take."""
    return (
        *_on_series(sharding),
        *_on_pulls(sharding, hardware),
        *_on_memory(sharding, hardware),
        *_on_format(sharding, hardware),
        *_on_board(hardware),
        *_on_context(sharding),
        *_on_kernels(sharding),
        *_on_mlapo(sharding),
        *_on_drafts(sharding),
        *_on_exchange(sharding),
        *_on_dense_mlps(sharding, hardware),
        *_on_move(sharding, hardware),
    )


def _on_dense_mlps(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    if sharding.split_mlps:
        uncounted = "which no time here counts, "
        if sharding.config.move != "weights" and sharding.moves:
            uncounted = "which only tokens a second count, "
        if hardware is None:
            uncounted = ""
        yield DENSE_MLPS.replace("and ", f"{uncounted}and ")
        if hardware is not None:
            yield GATHERED_MLPS


DENSE_MLPS = (
    "dense MLPs in parts: their tokens move in every forward, and answers are equal to rounding "
    "only"
)
"""Where no times are shown."""

GATHERED_MLPS = (
    "dense MLPs in parts: what they gather is taken from the room as an upper bound; with vLLM's "
    "default all-to-all backend the routed experts gather more, and the cache loses none of it"
)
"""Source: vLLM 0.32, distributed/device_communicators/all2all.py, AgRsAll2AllManager."""


def _on_move(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    move = sharding.config.move
    if move == "weights":
        return
    if not sharding.moves:
        yield f"move {move!r}: no weight is shared here, so that it changes nothing"
        return
    timed = "" if hardware is None else f"{_TIMED}, and "
    yield f"move {move!r}: {timed}answers are equal to rounding only"


_TIMED = "times are those of forwards that move weights, where nothing else is said"


def _on_series(sharding: Sharding) -> Iterator[str]:
    for group in sharding.groups:
        if group.plan.placement == "replicated":
            continue
        for series_plan in group.plan.series:
            name = series_plan.series.name
            if sharding.deployment.layout.pp > 1:
                name = f"{name} (pipeline stage {group.pp_stage})"
            if not series_plan.moves:
                yield _on_short(name, group.plan, series_plan)
                continue
            least = min(series_plan.ledger.saved_bytes)
            if least <= 0:
                yield (
                    f"series {name} saves nothing on some rank ({least:,} bytes): it has "
                    f"{layers(len(series_plan.series))} and every rank holds "
                    f"{slots(series_plan.schedule.num_slots)}; {_remedy(group.plan, series_plan)}"
                )
            if not series_plan.is_striped:
                yield from _on_balance(name, series_plan, group.plan.group_size)


def _on_short(name: str, plan: Plan, series_plan: SeriesPlan) -> str:
    series = series_plan.series
    number, named = len(series), series.configured
    if number == 1 and series.kept_layer is None:
        differ = (
            f"layer {series.layer_ids[0]} has another precision or shape than the others of "
            f"{named}, so it shares no slot with them and stays"
        )
    else:
        every = "" if series.kept_layer is None else f" beside the kept layer {series.kept_layer}"
        differ = (
            f"{layers(number)}{every} with another precision or shape than the others of {named}, "
            f"and no more than the slots of prefetch_step {plan.prefetch_step} hold, so all stay"
        )
    lower = number - 2
    remedy = f"; a prefetch_step of at most {lower} moves them" if lower > 0 else ""
    return f"series {name}: {differ} whole on every rank{remedy}"


def _remedy(plan: Plan, series_plan: SeriesPlan) -> str:
    lower = [
        *(["lower prefetch_step"] if plan.prefetch_step else []),
        *(["lower layer_stride"] if plan.layer_stride > 1 else []),
        *(["do without keep_first"] if series_plan.series.kept_layer is not None else []),
    ]
    named = series_plan.series.configured
    whole = "it" if named == series_plan.series.name else named
    return " or ".join([*lower, f"leave {whole} out"])


def _on_balance(name: str, series_plan: SeriesPlan, group_size: int) -> Iterator[str]:
    counts = [len(series_plan.owned_layers(rank)) for rank in range(group_size)]
    if max(counts) - min(counts) > 1:
        yield (
            f"series {name}: owners are out of balance, ranks store from {min(counts)} to "
            f"{max(counts)} layers; the fullest rank decides what is saved"
        )
    elif not min(counts):
        yield f"series {name}: {counts.count(0)} of {group_size} ranks own no layer of it"


def _on_pulls(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    config = sharding.config
    if "pull" not in sharding.transport_names:
        if config.slice_bytes:
            yield "slice_bytes does nothing here: only pulls are sliced"
        return
    pulling = [group for group in sharding.groups if group.transport_name == "pull"]
    largest = max(group.plan.group_size for group in pulling)
    if config.placement == "round_robin" and largest > 2:
        yield (
            f"an owner is the one source of {largest - 1} pulls at once; with placement striped "
            "each rank takes a part from every other, and all store as many bytes"
        )
    layout = sharding.deployment.layout
    if hardware is None and layout.pulls_over(several_nodes=layout.world_size > _NODE):
        yield (
            f"ranks that pull from each other must be on one node: with {_NODE} ranks a node "
            "these are not (layershard plan --hardware knows the device's number)"
        )


def _on_memory(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    """What sharding alone makes room for; that even it does not suffice is the verdict's to say."""
    fit = None if hardware is None else fit_of(sharding, hardware)
    if hardware is not None and fit is not None and fit.fits and not fit.fits_without_sharding:
        yield f"without sharding it does not fit: {exceeding(fit, hardware)}"


def warnings_on_load(
    sharding: Sharding, hardware: Hardware, decode: Batch, kv_cache_dtype: str
) -> tuple[str, ...]:
    """Decodes whose sequences, of all stages and context-parallel ranks, no engine has room for."""
    if budget_of(hardware) is None or not any(sharding.stage_kv_bytes(kv_cache_dtype)):
        return ()
    saved, taken = sharding.saved_bytes.__getitem__, taken_by(sharding, hardware).total
    held = capacity(sharding.model, sharding.deployment, hardware, saved, kv_cache_dtype, taken)
    layout = sharding.deployment.layout
    sequences = layout.pcp * running(decode, layout.pp)
    asked = sequences * int(decode.context)
    if not held.fits or asked <= held.engine_tokens:
        return ()
    each = f"after {int(decode.context):,} tokens each"
    said = f"a decode of {sequences:,} sequences {each} asks"
    if layout.pcp * layout.pp > 1:
        said = f"decodes of {sequences:,} sequences an engine {each} ask"
    return (
        f"{said} for {asked:,} tokens of cache; {hardware.name} has room for "
        f"{held.engine_tokens:,}",
    )


def warnings_on_length(config: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Of the sizes that are given: prompts and contexts for which the model has no positions."""
    if not sizes.keys() & {"context", "tokens", "prompt"}:
        return ()
    from vllm_layershard.planner.warnings.length import longer_than_positions

    return longer_than_positions(config, sizes)


def _on_context(sharding: Sharding) -> Iterator[str]:
    linears = sharding.model.linears(sharding.deployment)
    latent = any(linear.is_named("kv_b_proj") for linear in linears)
    if sharding.deployment.layout.pcp > 1 and not latent:
        yield (
            "prefill-context parallelism: the attention backends of vLLM 0.32 itself have it for "
            "multi-head latent attention (MLA) only, which this model has not"
        )


def _on_drafts(sharding: Sharding) -> Iterator[str]:
    drafts = sharding.model.blueprint.drafts
    if not sharding.model.drafted or drafts is None:
        return
    held = sharding.weight_bytes[-1].drafts
    yield (
        f"drafts (MTP) are counted, {layers(len(drafts.layers))} on the last stage's ranks: "
        f"{held:,} bytes of weights, and what the cache keeps; they are not sharded, and the "
        "time of their own forwards is not counted"
    )


def _on_exchange(sharding: Sharding) -> Iterator[str]:
    if sharding.deployment.exchange:
        from vllm_layershard.planner.warnings.exchange import warnings_on_exchange

        yield from warnings_on_exchange(sharding)


def _on_kernels(sharding: Sharding) -> Iterator[str]:
    if not any("qkv_a_proj" in name for name in sharding.config.layers):
        return
    linears = select(sharding.model.linears(sharding.deployment), sharding.config.layers)
    for name, members in linears.items():
        if any(map(is_min_latency, members)):
            yield (
                f"series {name}: on Hopper and on Blackwell 10.x vLLM's min-latency GEMM reads it "
                "outside its quant method, and the server refuses to shard it: leave it out"
            )


def _on_mlapo(sharding: Sharding) -> Iterator[str]:
    model = sharding.model
    if model.cache_device.is_ascend and model.quantization != "none":
        from vllm_layershard.planner.warnings.mlapo import warnings_on_mlapo

        yield from warnings_on_mlapo(sharding)


def _on_format(sharding: Sharding, hardware: Hardware | None) -> Iterator[str]:
    if hardware is None or hardware.low_bit_format == "fp8":
        return
    if stands_in(sharding.model):
        yield (
            "vllm-ascend has no class for method fp8, so there is no launch line. The directory of "
            "the W8A8 checkpoint gives exact bytes and the launch line"
        )
    elif "fp8" in sharding.model.quantization:
        yield (
            f"{hardware.name} computes in int8, not in fp8: it serves the W8A8 checkpoint of this "
            "model, with as many bytes a weight but other scales; give its path for exact bytes"
        )


def _on_board(hardware: Hardware | None) -> Iterator[str]:
    if hardware is not None and hardware.name == "910C-board":
        yield (
            "910C-board has the numbers of both dies, and a server runs a rank on each of them: "
            "plan with --hardware 910C and twice as many ranks"
        )
