"""Shape: a linear as one rank holds it, before quantisation says which tensors that takes."""

from __future__ import annotations

from collections.abc import Iterable
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
    `shared_out`: tensor-parallel ranks, which all hold it, compute a part of the tokens each.
    `partial`: what it puts out on a rank is a partial sum, which its consumer adds up.
    `shared_expert`: it runs within vLLM's op of the routed experts, beside them.
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
    shared_out: bool = False
    partial: bool = False
    shared_expert: bool = False

    @property
    def rows(self) -> int:
        """Output elements on this rank."""
        return sum(self.outs)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.rows * (self.inner + self.bias)

    def exchanged(self, tp: int) -> Shape:
        """The same on each of `tp` ranks that exchange tokens before it: whole."""
        assert self.split == "in", f"{self.suffix}: only a row-parallel linear is exchanged"
        return self._replace(inner=self.inner * tp, split="none", shared_out=True)


class Vector(NamedTuple):
    """Parameters that are no linear's: norms, sinks, correction biases, convolutions."""

    name: str
    elements: int
    dtype: str


class SplitSize(NamedTuple):
    """A size that tensor parallelism splits, by its name in config.json.

    `repeated`: where there are fewer than ranks, several ranks hold the same one.
    """

    key: str
    size: int
    repeated: bool = False


def require_split(tp: int, sizes: Iterable[SplitSize]) -> None:
    """Refuse a `tp` that cannot split every size.

    Raises:
        PlanError: names the first that it cannot.
    """
    fewer: list[SplitSize] = []
    for each in sizes:
        if each.repeated and each.size < tp:
            fewer.append(each)
        elif each.size % tp:
            raise PlanError(
                f"tp = {tp}: does not divide {each.key} = {each.size:,}; choose one that does"
            )
    for each in fewer:
        if tp % each.size:
            raise PlanError(
                f"tp = {tp}: is no multiple of {each.key} = {each.size}, which are fewer; choose "
                "one that is"
            )


def per_rank(size: int, tp: int) -> int:
    """What one of `tp` ranks holds of a size that is split."""
    assert size % tp == 0, f"{size} over {tp} ranks: the blueprint's `split` lacks it"
    return size // tp
