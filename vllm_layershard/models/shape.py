"""Shape: a linear as one rank holds it, before quantisation says which tensors that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vllm_layershard.errors import PlanError

Split = Literal["out", "in", "none"]
"""Along which side tensor parallelism splits a linear; `none`: every rank holds all of it."""

After = Literal["", "attention", "experts"]
"""What runs after a linear that is none itself."""


class Shape(NamedTuple):
    """One linear on one rank: `outs` are the rows of the parts fused along its output.

    `suffix` is its name within the layer. `absorbed`: its product is part of the attention's.
    `convolution`: a one-dimensional one over `inner` tokens, which vLLM builds as a linear.
    """

    suffix: str
    outs: tuple[int, ...]
    inner: int
    split: Split
    quantisable: bool = True
    bias: bool = False
    dtype: str | None = None
    after: After = ""
    absorbed: bool = False
    convolution: bool = False

    @property
    def rows(self) -> int:
        """Output elements on this rank."""
        return sum(self.outs)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.rows * (self.inner + self.bias)


class Vector(NamedTuple):
    """Parameters that are no linear's: norms, sinks, correction biases, convolutions."""

    name: str
    elements: int
    dtype: str


def require_divisible(tp: int, sizes: Mapping[str, int]) -> None:
    """Refuse a `tp` that does not divide every size; the keys are those of config.json.

    Raises:
        PlanError: names the first that it does not.
    """
    for key, size in sizes.items():
        if size % tp:
            raise PlanError(f"tp = {tp}: does not divide {key} = {size:,}; choose one that does")
