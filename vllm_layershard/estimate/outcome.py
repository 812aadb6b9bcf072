"""Forecast: what is foretold of one sharding on one device, phase by phase."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vllm_layershard.estimate.capacity import Fit
from vllm_layershard.estimate.hardware import Basis, Hardware
from vllm_layershard.estimate.overlap import Forward
from vllm_layershard.models import Batch

PhaseName = Literal["prefill", "decode"]


class Phase(NamedTuple):
    """One kind of forward, with its timeline, of the pipeline stage that loses most.

    `recommended` is the forward with `recommended_step`: the smallest step that hides, or if none
    does, the smallest within TOLERANCE of the fastest. Without the numbers these three are None.
    `kept` is the forward with `keep_first`, where that is WORTH a layer's memory.
    """

    name: PhaseName
    batch: Batch
    forward: Forward | None = None
    recommended_step: int | None = None
    recommended: Forward | None = None
    kept: Forward | None = None

    @property
    def hidden(self) -> bool:
        """Whether it is known to hide."""
        return self.forward is not None and self.forward.hidden


class Forecast(NamedTuple):
    """The phases, and what follows from them.

    `recommended_step` is that of the prefill; `break_even_tokens` the fewest prefill tokens a rank
    that hide the movement, None if none do. `lacking` names the numbers without which nothing is
    estimated; then there are no times, no step and no break-even. `fit` says whether the weights
    fit the device, None where its memory is not known.
    """

    hardware: Hardware
    phases: tuple[Phase, ...]
    recommended_step: int | None
    break_even_tokens: int | None
    verdict: str
    assumptions: tuple[str, ...]
    lacking: tuple[str, ...] = ()
    fit: Fit | None = None
    movement_basis: Basis = "assumed"
    """Of what the movement takes alone. All other times are assumed: experts evenly loaded, and
    what a step reaches."""

    @property
    def starts(self) -> bool:
        """False where the weights are known not to fit, so that no server starts."""
        return self.fit is None or self.fit.fits
