"""What it comes to where activations move, beside what weights that move expose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vllm_layershard.estimate.forwards.overlap import TOLERANCE
from vllm_layershard.estimate.moved.linears import Moved
from vllm_layershard.estimate.outcome import PhaseName
from vllm_layershard.models import Batch


class LinearTime(NamedTuple):
    """Seconds of one linear whose activations move, a layer's mean; `own` is its product at home.

    `there` and `back` are the two collectives, and `product` is all ranks' tokens in the place of
    a rank's own: by the whole weight on its owner, or by a rank's rows of it. Nothing hides any of
    them.
    """

    own: float
    there: float
    product: float
    back: float

    @property
    def longer(self) -> float:
        """Seconds by which a layer takes longer."""
        return self.there + self.product + self.back - self.own


class LinearLoad(NamedTuple):
    """What one linear asks of the rank that is asked most, a layer's mean.

    Bytes: `moved` of activations, both ways together, `arriving` of the weight where that moves,
    and `spared` of the weight, which the product does not read. `latency` and `saved` are seconds:
    the least of both collectives, and what reading the spared bytes would take. `multiplied` are
    the tokens of the product.
    """

    moved: float
    arriving: float
    spared: float
    latency: float
    saved: float
    multiplied: float


class BothWays(NamedTuple):
    """One forward of this batch on each rank, of the pipeline stage that loses most by each way.

    `layers` are so many, and `linear` and `load` their mean. The stage that loses most by
    activations has so many `collectives` of them. In seconds: `activations` is by how much the
    forward takes longer where activations move, and `weights` where weights do (with the most
    contention of the device's). `activations_compute` and `weights_compute` are the forwards of the
    same stages without sharding: the two may be two stages.
    """

    batch: Batch
    layers: int
    linear: LinearTime
    load: LinearLoad
    collectives: int
    activations: float
    activations_compute: float
    weights: float
    weights_compute: float

    @property
    def activations_share(self) -> float:
        """By how much a forward that moves activations takes longer, over its own compute."""
        return self.activations / self.activations_compute

    @property
    def activations_hidden(self) -> bool:
        """Whether a forward that moves activations takes at most 1 % longer."""
        return self.activations_share <= TOLERANCE

    @property
    def weights_share(self) -> float:
        """By how much a forward that moves weights takes longer, over its own compute."""
        return self.weights / self.weights_compute


class Served(NamedTuple):
    """Decodes of as many sequences as the cache has room for: of one engine, at one context.

    `step` is the seconds in which each sequence gets a token: with pipeline stages, those in which
    each of the decodes in flight passes all of them. `moves` is what the largest moves, "" nothing.
    """

    sequences: int
    step: float
    moves: str = ""

    @property
    def rate(self) -> float:
        """Tokens a second: one of each sequence a step, as if no draft were accepted."""
        return self.sequences / self.step if self.step else 0.0


class ActivationsOutcome(NamedTuple):
    """The linears, both ways in each phase, the threshold, and what decodes gain.

    `move_weights_from` are the fewest tokens a rank whose weights expose no more than activations
    cost; None where activations are quicker however many tokens there are. `alone` and `shared`
    are decodes without sharding and with it, as the plan moves; None where no cache size is known.
    `lacking` names what the device lacks; then there are no times.
    """

    linears: tuple[Moved, ...]
    verdict: str
    phases: Mapping[PhaseName, BothWays]
    move_weights_from: int | None
    alone: Served | None
    shared: Served | None
    gathered_bytes: int
    lacking: tuple[str, ...]
    assumptions: tuple[str, ...]
