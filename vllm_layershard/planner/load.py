"""What a rank computes in each phase, as far as a user says."""

from __future__ import annotations

from typing import Final

from vllm_layershard.config import short
from vllm_layershard.errors import ConfigError

MAX_TOKENS: Final = 1 << 26
MAX_SEQUENCES: Final = 1 << 20


def sizes_of(tokens: int | None, batch: int | None, context: int | None) -> dict[str, int]:
    """The sizes that are given, by the names of `forecast`'s arguments: a batch has sequences.

    Raises:
        ConfigError: a size is no whole number within its bounds.
    """
    given = {
        "tokens": (tokens, MAX_TOKENS),
        "batch": (batch, MAX_SEQUENCES),
        "context": (context, MAX_TOKENS),
    }
    for name, (size, most) in given.items():
        if size is not None and (type(size) is not int or not 1 <= size <= most):
            raise ConfigError(f"{name} = {short(size)}: give a whole number from 1 to {most:,}")
    sizes = {"tokens": tokens, "sequences": batch, "context": context}
    return {name: size for name, size in sizes.items() if size is not None}
