"""Phases: those that `--hide-in` names."""

from __future__ import annotations

from typing import get_args

from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import PhaseName


def phases_of(hide_in: str | None) -> tuple[PhaseName, ...]:
    """The phases that `--hide-in` names; prefill by default.

    Raises:
        ConfigError: another name.
    """
    named = [name.strip() for name in ("prefill" if hide_in is None else hide_in).split(",")]
    known: tuple[PhaseName, ...] = get_args(PhaseName)
    for name in named:
        if name not in known:
            raise ConfigError(f"--hide-in: {name!r} is not one of {', '.join(known)}")
    return tuple(phase for phase in known if phase in named)
