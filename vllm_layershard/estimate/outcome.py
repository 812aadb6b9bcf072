"""What a forecast comes to: an Estimate or an Abstention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vllm_layershard.estimate.capacity import Fit
from vllm_layershard.estimate.figure import Basis
from vllm_layershard.estimate.forwards.batches import ONE_PROMPT, Prompts
from vllm_layershard.estimate.forwards.overlap import Forward
from vllm_layershard.estimate.forwards.thresholds import Thresholds
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Batch

PhaseName = Literal["prefill", "decode"]


class Trial(NamedTuple):
    """One simulated forward, and the two settings that it was simulated with."""

    step: int
    keep_first: bool
    forward: Forward


class Phase(NamedTuple):
    """One kind of forward, of the pipeline stage that loses most: as asked for, and otherwise.

    `asked` has the settings of the plan, and a timeline where one was wanted. `best` has the
    step that `Forwards.recommended_step` chooses. `kept` has `keep_first`; it is None where the
    plan has it already, and where it is not worth the memory. All of them have the most contention
    of the device's; `least` has the least, and is None where the two are one.
    """

    name: PhaseName
    batch: Batch
    asked: Trial
    best: Trial
    kept: Trial | None
    least: Forward | None = None

    @property
    def hidden(self) -> bool:
        """Whether the plan hides, as it was asked for."""
        return self.asked.forward.hidden

    @property
    def with_least(self) -> Forward:
        """The forward as it was asked for with the least contention."""
        return self.asked.forward if self.least is None else self.least


class Estimate(NamedTuple):
    """The times of all trials of a plan on one device, and what follows from them.

    `fit` says whether the weights fit the device; None where its memory is not known. `contention`
    is by how much products slow down beside a movement, at least and at most.
    """

    hardware: Hardware
    fit: Fit | None
    verdict: str
    phases: tuple[Phase, ...]
    thresholds: Thresholds
    contention: tuple[float, float]
    assumptions: tuple[str, ...]
    prompts: Prompts
    movement_basis: Basis
    """Of what the movement takes alone. All other times are assumed: experts evenly loaded, and
    what a step reaches."""

    @property
    def break_even_tokens(self) -> int | None:
        """The fewest prefill tokens a rank that hide the movement, whatever the contention."""
        return self.thresholds.hidden_most

    @property
    def batches(self) -> Mapping[PhaseName, Batch]:
        """What each phase was asked about: its batch on each rank."""
        return {phase.name: phase.batch for phase in self.phases}

    @property
    def recommended_step(self) -> int:
        """The step of the prefill that `Forwards.recommended_step` chooses."""
        return self.phases[0].best.step


class Abstention(NamedTuple):
    """What stands in the place of an estimate where the device lacks a number.

    `lacking` names the numbers. `fit` and `batches` are as in an estimate: they need none of them.
    """

    hardware: Hardware
    fit: Fit | None
    verdict: str
    batches: Mapping[PhaseName, Batch]
    lacking: tuple[str, ...]
    prompts: Prompts = ONE_PROMPT


Forecast = Estimate | Abstention
