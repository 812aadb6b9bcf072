"""Phases: those that `--hide-in` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import PhaseName

PREFILL: Final[tuple[PhaseName, ...]] = ("prefill",)
"""What has to hide where nobody says."""


def phases_of(given: Sequence[str] | None) -> tuple[PhaseName, ...] | None:
    """The phases that `--hide-in` names, in one value or in several; None if it was not given.

    Raises:
        ConfigError: another name.
    """
    if given is None:
        return None
    named = [name.strip() for value in given for name in value.split(",")]
    known: tuple[PhaseName, ...] = get_args(PhaseName)
    for name in named:
        if name not in known:
            raise ConfigError(f"--hide-in: {name!r} is not one of {', '.join(known)}")
    return tuple(phase for phase in known if phase in named)
