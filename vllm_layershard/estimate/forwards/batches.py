"""What a rank computes in a prefill and in a decode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from vllm_layershard.models import Batch

PREFILL_TOKENS: Final = 8192
DECODE_SEQUENCES: Final = 64
DECODE_CONTEXT: Final = 4096
"""The phases that are looked at where the user says nothing; assumed."""


class Prompts(NamedTuple):
    """The prompts of a prefill: their new tokens each, and the tokens before those in the cache.

    `length` None: one prompt is as long as the forward.
    """

    length: int | None = None
    cached: int = 0


ONE_PROMPT: Final = Prompts()


def prefill(tokens: int, pcp: int = 1, prompts: Prompts = ONE_PROMPT) -> Batch:
    """So many tokens of prompts on each of their context-parallel ranks.

    A token attends to half of its own prompt on average, and to all that is cached of it: vLLM
    gives every rank tokens from a prompt's front and its back. Prompts fill the forward one after
    another, the last one as far as there is room. Of a prompt that is longer than the forward it is
    the mean piece.
    """
    whole = tokens * pcp
    length = prompts.length or whole
    if length >= whole:
        return Batch(tokens=tokens, context=prompts.cached + length / 2, decode=False)
    full, rest = divmod(whole, length)
    attended = (full * length**2 + rest**2) / 2
    return Batch(tokens=tokens, context=prompts.cached + attended / whole, decode=False)


def running(decoded: Batch, stages: int) -> int:
    """Sequences of a rank that a server runs at once, so that each stage decodes this batch.

    A decode is in flight for each pipeline stage. vLLM bounds all that an engine runs, whichever
    stage has them, and its cache holds all of them.
    Source: vLLM 0.32, v1/core/sched/scheduler.py, `schedule`: `max_num_active_reqs`, by default
    `max_num_seqs`, bounds `running`, and a request stays in there while its batch is in flight.
    """
    return stages * int(decoded.sequences)


def most_tokens(batches: Iterable[Batch], stages: int) -> int:
    """Of a rank in the largest forward that the launch line allows.

    That is the largest of these, or one token of each sequence that runs: vLLM refuses a smaller
    bound. Source: vLLM 0.32, config/scheduler.py, `verify_max_model_len`.
    """
    return max(max(one.tokens, running(one, stages) if one.decode else 0) for one in batches)


def decode(sequences: int, context: int, drafted: int) -> Batch:
    """So many sequences on each rank, each after so many tokens; `Model.drafted` says the last.

    A forward has 1 + `drafted` tokens of each, whether they are accepted or not.
    Source: vLLM 0.32, v1/core/sched/scheduler.py, `schedule`: `num_tokens_with_spec`.
    """
    return Batch(sequences * (1 + drafted), context, decode=True, drafted=drafted)
