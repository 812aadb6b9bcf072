"""CompareResult: the answer to `layershard compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_layershard.estimate import Hardware
from vllm_layershard.planner.results.document import SCHEMA_VERSION, plain

if TYPE_CHECKING:
    from vllm_layershard.planner.results.move import LayoutMove


class ComparedModel(NamedTuple):
    """The model, and where its config.json came from."""

    name: str
    source: str


class LayoutCapacity(NamedTuple):
    """What one layout holds; weights and room are those of the rank that limits the cache.

    `engines` have a KV cache of their own each, of `engine_tokens`; `tokens` are all of them.
    `fits` holds for every rank. `move` says what its forwards move; None: weights, or nothing.
    """

    layout: str
    fits: bool
    weight_bytes: int
    room_bytes: int
    engines: int
    engine_tokens: int
    tokens: int
    move: LayoutMove | None = None


class RefusedLayout(NamedTuple):
    """A layout that was not asked for by name and that the model cannot have, and why."""

    layout: str
    refused: str


class CompareResult(NamedTuple):
    """The answer to `layershard compare`. Each key of the document is an attribute, but the device.

    `device` is what the document names as `hardware`.
    """

    model: ComparedModel
    device: Hardware
    layouts: tuple[LayoutCapacity | RefusedLayout, ...]
    warnings: tuple[str, ...]

    @property
    def hardware(self) -> str:
        """The device's name."""
        return self.device.name

    def document(self) -> dict[str, Any]:
        """`layershard compare --json`: plain data of JSON's types."""
        keys = ("model", "hardware", "layouts", "warnings")
        return {"schema_version": SCHEMA_VERSION} | {key: plain(getattr(self, key)) for key in keys}
