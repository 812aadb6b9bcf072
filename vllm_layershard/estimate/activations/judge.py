"""Judges whether activations or weights should move: from how many tokens on, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_layershard.estimate.activations.clock import Clock, lacking_for
from vllm_layershard.estimate.activations.outcome import ActivationsOutcome, BothWays, Served
from vllm_layershard.estimate.activations.verdict import verdict_on
from vllm_layershard.estimate.capacity import budget_of, capacity
from vllm_layershard.estimate.forwards.batches import decode
from vllm_layershard.estimate.forwards.thresholds import fewest_tokens
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.moved.gathered import gathered_bytes
from vllm_layershard.estimate.moved.linears import moved_linears
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.models import Batch, Sharding
from vllm_layershard.plan.move import move_rule

_BY_OWNER: Final = (
    "activations: a layer's owner computes for all ranks, with two collectives a linear that "
    "nothing hides"
)
_BY_ROWS: Final = (
    "activations: every rank computes its rows for all ranks, with an all-gather and an all-to-all "
    "a linear that nothing hides"
)
_ASSUMPTIONS: Final = (
    "the threshold is of decodes at the context that was asked for, all ranks with as many tokens",
    "tokens a second: as many sequences as the cache has room for, whatever --max-num-seqs says",
)
_STAGES: Final = (
    "tokens a second: a decode in flight for each pipeline stage, the sequences spread evenly over "
    "them; the slowest stage sets the pace, or one decode on all stages where sequences are few"
)
_PARTS: Final = (
    "tokens a second: dense MLPs in parts with their all-gather and reduce-scatter; no other time "
    "here counts these"
)
_DRAFTS: Final = (
    "tokens a second: one of each sequence a step, as if no draft were accepted; those that are "
    "multiply both rates alike"
)


def judge(
    sharding: Sharding,
    hardware: Hardware,
    batches: Mapping[PhaseName, Batch],
    kv_cache_dtype: str,
) -> ActivationsOutcome:
    """Compare both ways. The sharding moves something, among ranks in lockstep.

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """
    config, linears = sharding.config, moved_linears(sharding, hardware)
    lacks = lacking_for(sharding, hardware, linears)
    phases: dict[PhaseName, BothWays] = {}
    threshold = alone = shared = None
    if not lacks:
        clock = Clock(sharding, hardware, linears)
        phases = {name: clock.both(batch) for name, batch in batches.items()}
        threshold = fewest_to_move(clock, batches["decode"])
        if budget_of(hardware) is not None:
            context = batches["decode"].context
            alone, shared = _served(sharding, hardware, clock, context, kv_cache_dtype)
    return ActivationsOutcome(
        linears=linears,
        verdict=verdict_on(move_rule(config), phases, threshold, (alone, shared), hardware, lacks),
        phases=phases,
        move_weights_from=threshold,
        alone=alone,
        shared=shared,
        gathered_bytes=max(gathered_bytes(sharding, linears)),
        lacking=lacks,
        assumptions=(
            _BY_ROWS if config.cuts_rows else _BY_OWNER,
            *_ASSUMPTIONS,
            *([_PARTS] if sharding.split_mlps else []),
            *([_DRAFTS] if sharding.model.drafted else []),
            *([_STAGES] if sharding.deployment.layout.pp > 1 else []),
        ),
    )


def fewest_to_move(clock: Clock, asked: Batch) -> int | None:
    """The fewest tokens a rank from which on weights expose no more than activations cost.

    Near it most forwards decode: so many sequences, each at the context that was asked for.
    """

    def progress(tokens: int) -> float:
        both = clock.both(asked._replace(tokens=tokens))
        return both.activations - both.weights

    return fewest_tokens(progress, asked.tokens, asked.tokens)


def _served(
    sharding: Sharding, hardware: Hardware, clock: Clock, context: float, kv_cache_dtype: str
) -> tuple[Served | None, Served | None]:
    """Decodes that fill the cache, without sharding and with it; None: not one sequence fits.

    With it a step moves what the plan's rule says of so many tokens, the quicker way or not. Each
    pipeline stage has a decode in flight, of its share of the sequences. Fewer sequences than
    stages are as many decodes. Source: vLLM 0.32, config/vllm.py, `max_concurrent_batches`.
    """
    rule, stages = move_rule(sharding.config), sharding.deployment.layout.pp
    found: list[Served | None] = []
    taken = taken_by(sharding, hardware).total
    for shares in (False, True):
        saved = sharding.saved_bytes.__getitem__ if shares else _nothing
        held = capacity(
            sharding.model,
            sharding.deployment,
            hardware,
            saved,
            kv_cache_dtype,
            taken if shares else None,
        )
        sequences = int(held.engine_tokens // context)
        if not held.fits or not sequences:
            found.append(None)
            continue
        decodes = [
            decode(share, int(context), sharding.model.drafted)
            for share in _evenly(sequences, min(stages, sequences))
        ]
        moves = [rule.moved([batch.tokens]) if shares else "" for batch in decodes]
        step = clock.round_of([*zip(decodes, moves, strict=True)])
        found.append(Served(sequences, step, moves[0]))
    return found[0], found[1]


def _evenly(sequences: int, decodes: int) -> list[int]:
    """The sequences of each decode, the largest first."""
    least, more = divmod(sequences, decodes)
    return [least + 1] * more + [least] * (decodes - more)


def _nothing(rank: int) -> int:
    return 0
