"""Flags as the planner's arguments; a flag that was not given leaves its argument out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm_layershard.planner.layout import Layout


class LayoutFlags(NamedTuple):
    """The parallel flags as given; None where not."""

    tp: int | None
    dp: int | None
    pcp: int | None
    pp: int | None
    ep: bool | None

    @property
    def layout(self) -> Layout | None:
        """The layout that they say; None where none of them was given."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return Layout(**given) if given else None


def options_of(**flags: Any) -> dict[str, Any]:
    """The flags on the sharding that were given, by the names of the configuration.

    They are as the user wrote them: the planner refuses what is not valid.
    """
    return {name: value for name, value in flags.items() if value is not None}


def listed(layers: Sequence[str] | None) -> Sequence[str] | None:
    """What `--layers` lists; None where it was not given."""
    return layers or None
