"""Which linears to shard, and every how many layers, so that the movement stays hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HardwareError, PlanError
from vllm_layershard.estimate.forecast import lacking_for
from vllm_layershard.estimate.forwards.batches import (
    DECODE_CONTEXT,
    DECODE_SEQUENCES,
    PREFILL_TOKENS,
    Prompts,
    decode,
    prefill,
)
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.taken import beside_taken
from vllm_layershard.models import (
    Batch,
    Deployment,
    Model,
    Sharding,
    copied_prefixes,
    is_min_latency,
    shard_model,
)
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan.linear import short_names
from vllm_layershard.plan.move import move_rule

if TYPE_CHECKING:
    from vllm_layershard.estimate.activations.clock import Clock

_STRIDES: Final = (1, 2, 3, 4, 6, 8)


def choose(
    model: Model,
    deployment: Deployment,
    hardware: Hardware,
    template: LayerShardConfig,
    phases: Sequence[PhaseName],
    layer_stride: int | None = None,
    tokens: int = PREFILL_TOKENS,
    sequences: int = DECODE_SEQUENCES,
    context: int = DECODE_CONTEXT,
    prompt: int | None = None,
    cached: int = 0,
    *,
    open_threshold: bool = False,
) -> Sharding:
    """The linears and the smallest stride that save most while every one of `phases` hides them.

    A phase hides with what it moves, by the template's rule: weights, or activations. With an
    `open_threshold` each set has the one at which its own weights cost no more than activations.
    For each stride (or the one given), linears are taken in the order of what each saves, and kept
    if the set still hides. What is taken beside weights is subtracted from what is saved.
    `template` holds all other options; its names and stride are replaced.

    Raises:
        HardwareError: the hardware lacks a number that the choice needs.
        PlanError: no linear stays hidden, whatever the stride.
    """
    batches = {
        "prefill": prefill(tokens, deployment.layout.pcp, Prompts(prompt, cached)),
        "decode": decode(sequences, context, model.drafted),
    }

    asked = [batches[phase] for phase in phases]

    def left_by(sharding: Sharding) -> int:
        return _saved(beside_taken(sharding, hardware))

    best: Sharding | None = None
    for stride in _STRIDES if layer_stride is None else (layer_stride,):
        found: Sharding | None = None
        for name in candidates(model, deployment, replace(template, layer_stride=stride)):
            names = (*found.config.layers, name) if found is not None else (name,)
            config = replace(template, layers=names, layer_stride=stride)
            sharding = shard_model(model, deployment, config)
            if found is not None and left_by(sharding) <= left_by(found):
                continue
            if open_threshold and sharding.moves:  # what it gathers is known then
                sharding = _with_threshold(sharding, hardware, batches["decode"])
            if (found is None or left_by(sharding) > left_by(found)) and _all_hide(
                sharding, hardware, asked
            ):
                found = sharding
        if found is not None and (best is None or left_by(found) > left_by(best)):
            best = found
    if best is None or left_by(best) <= 0:
        said = _by_activations(template, asked, open_threshold=open_threshold)
        raise PlanError(
            f"--layers auto: no linear of {model.name} saves anything and stays hidden in "
            f"{' and '.join(phases)} on {hardware.name}{said}; name "
            "the linears to see what each costs"
        )
    return best


def _by_activations(
    config: LayerShardConfig, asked: Sequence[Batch], *, open_threshold: bool
) -> str:
    """Of forwards that are hidden or not: that some of them move activations; "": none does."""
    if open_threshold:
        return ", each with the quicker of weights and activations"
    rule = move_rule(config)
    if all(rule.moves_weights([batch.tokens]) for batch in asked):
        return ""
    return ", where activations move"


def _with_threshold(sharding: Sharding, hardware: Hardware, decoded: Batch) -> Sharding:
    """The sharding with its own threshold between activations and weights.

    Raises:
        HardwareError: the hardware lacks a number that this needs.
    """
    from vllm_layershard.estimate.activations.judge import fewest_to_move  # seldom asked for

    tokens = fewest_to_move(_clock_of(sharding, hardware), decoded) or MAX_TOKENS
    return sharding._replace(config=replace(sharding.config, move_weights_from=tokens))


def _clock_of(sharding: Sharding, hardware: Hardware) -> Clock:
    """What times both ways.

    Raises:
        HardwareError: the hardware lacks a number that it needs.
    """
    from vllm_layershard.estimate.activations import clock  # seldom asked for
    from vllm_layershard.estimate.moved.linears import moved_linears

    linears = moved_linears(sharding, hardware)
    _require_numbers(lacking_for(sharding, hardware), hardware)
    _require_numbers(clock.lacking_for(sharding, hardware, linears), hardware)
    return clock.Clock(sharding, hardware, linears)


def _all_hide(sharding: Sharding, hardware: Hardware, asked: Sequence[Batch]) -> bool:
    """Whether every forward stays hidden, each with what it moves.

    Raises:
        HardwareError: the hardware lacks a number that this needs.
    """
    rule = move_rule(sharding.config)
    weights = [batch for batch in asked if rule.moves_weights([batch.tokens])]
    activations = [batch for batch in asked if batch not in weights]
    _require_numbers(lacking_for(sharding, hardware), hardware)
    forwards, step = Forwards(sharding, hardware), sharding.config.prefetch_step
    if not all(forwards.run(batch, step).hidden for batch in weights):
        return False
    if not activations or not sharding.moves:
        return True
    both = _clock_of(sharding, hardware).both
    return all(both(batch).activations_hidden for batch in activations)


def _require_numbers(lacking: Sequence[str], hardware: Hardware) -> None:
    if lacking:
        raise HardwareError(
            f"--layers auto: {hardware.name} lacks {'; '.join(lacking)}; name the linears, or "
            "give the number in a profile (--hardware FILE.json)"
        )


def _saved(sharding: Sharding) -> int:
    return min(sharding.saved_bytes)


def candidates(model: Model, deployment: Deployment, template: LayerShardConfig) -> list[str]:
    """Names of linears that save something alone, those that save most first.

    `template` holds the options; its names are replaced. What it exchanges is no candidate, and is
    sharded beside each of them.
    """
    saved: dict[str, int] = {}
    linears, exchanged = model.linears(deployment), template.token_exchange
    copied = copied_prefixes(model, deployment)
    outside = set(short_names([x for x in linears if is_min_latency(x) or x.prefix in copied]))
    whole = [linear for linear in linears if any(map(linear.is_named, exchanged))]
    for name in short_names(linears):
        if refusal_of(name) is not None or name in outside:
            continue
        if any(linear.is_named(name) for linear in whole):
            continue
        try:
            config = replace(template, layers=(*exchanged, name))
            saved[name] = _saved(shard_model(model, deployment, config))
        except PlanError:
            continue  # too short a series for the step, no layer of it at this stride
    return sorted((name for name in saved if saved[name] > 0), key=lambda name: -saved[name])
