"""What a rank computes in each phase, as far as a user says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_layershard.config import short
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate.forwards.batches import (
    DECODE_CONTEXT,
    DECODE_SEQUENCES,
    PREFILL_TOKENS,
    decode,
    most_tokens,
    prefill,
)
from vllm_layershard.models import Model
from vllm_layershard.plan import ParallelLayout

MAX_TOKENS: Final = 1 << 26
MAX_SEQUENCES: Final = 1 << 20

MAX_DRAFTED: Final = 64
"""More tokens than anybody drafts in a step."""


def sizes_of(
    tokens: int | None,
    batch: int | None,
    context: int | None,
    prompt: int | None,
    cached: int | None,
) -> dict[str, int]:
    """The sizes that are given, by the names of `forecast`'s arguments: a batch has sequences.

    Raises:
        ConfigError: a size is no whole number within its bounds.
    """
    given = {
        "tokens": (tokens, 1, MAX_TOKENS),
        "batch": (batch, 1, MAX_SEQUENCES),
        "context": (context, 1, MAX_TOKENS),
        "prompt": (prompt, 1, MAX_TOKENS),
        "cached": (cached, 0, MAX_TOKENS),
    }
    for name, (size, least, most) in given.items():
        if size is not None and (type(size) is not int or not least <= size <= most):
            raise ConfigError(
                f"{name} = {short(size)}: give a whole number from {least} to {most:,}"
            )
    sizes = {name: size for name, (size, _, _) in given.items() if size is not None}
    if "batch" in sizes:
        sizes["sequences"] = sizes.pop("batch")
    return sizes


def as_launched(model: Model, layout: ParallelLayout, sizes: Mapping[str, int]) -> Model:
    """The model with steps of as many tokens as the launch line of these sizes allows.

    A cache that keeps windows is counted beside them, and so are activations that are gathered.
    """
    forwards = (
        prefill(sizes.get("tokens", PREFILL_TOKENS)),
        decode(sizes.get("sequences", DECODE_SEQUENCES), DECODE_CONTEXT, model.drafted),
    )
    step = layout.pcp * most_tokens(forwards, layout.pp)
    return model._replace(cache_device=model.cache_device._replace(step_tokens=step))
