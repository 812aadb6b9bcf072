"""Quantization: which number format each module of a model has, and what tensors that takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import (
    Format,
    plain_experts,
    plain_linear,
)
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Choice(Protocol):
    """The format of each module by vLLM's name of it; None: it is not quantised.

    Raises, each of them:
        ModelError: the parts of a fused linear, or of an expert, differ.
    """

    def linear(self, prefix: str) -> Format | None:
        """Of a linear of a decoder layer."""

    def experts(self, prefix: str) -> Format | None:
        """Of the routed experts of a layer."""

    def head(self, prefix: str) -> Format | None:
        """Of the output head."""


class Beside(Protocol):
    """What lies beside the linears of a checkpoint."""

    def nbytes(self, linears: Iterable[tuple[str, Shape]], dtype: str, tp: int) -> int:
        """Its bytes on one rank that has these linears, each by vLLM's name of it.

        Raises:
            PlanError: vLLM refuses it under this tensor parallelism.
            ModelError: vLLM refuses it for one of the linears.
        """


class Nothing:
    """No module is quantised."""

    def linear(self, prefix: str) -> Format | None:
        """None."""
        return None

    def experts(self, prefix: str) -> Format | None:
        """None."""
        return None

    def head(self, prefix: str) -> Format | None:
        """None."""
        return None


class Unread:
    """Nobody has looked yet: a family reads no quantisation, the registry does."""

    def linear(self, prefix: str) -> Format | None:
        """Never asked for."""
        raise AssertionError("the registry reads the quantisation of a blueprint")

    def experts(self, prefix: str) -> Format | None:
        """Never asked for."""
        return self.linear(prefix)

    def head(self, prefix: str) -> Format | None:
        """Never asked for."""
        return self.linear(prefix)


class Quantization:
    """One checkpoint's method; all shapes and bytes are those of one rank.

    `name` is `none`, or the method with what tells it from its kin. Formats are chosen once a
    module, and tensors made once for all linears that are alike. `transforms`: what a server keeps
    beside the linears, None of nearly all checkpoints.
    """

    __slots__ = ("_choice", "_experts", "_linears", "_tensors", "name", "transforms")

    def __init__(self, name: str, choice: Choice, transforms: Beside | None = None) -> None:
        self.name = name
        self.transforms = transforms
        self._choice = choice
        self._linears: dict[str, Format | None] = {}
        self._experts: dict[str, Format | None] = {}
        self._tensors: dict[tuple[Format | None, Shape, str, int], tuple[TensorSpec, ...]] = {}

    def tensors(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The tensors of a linear after vLLM created it, in the order weight, scales, bias.

        Raises:
            PlanError: the format's blocks or groups would be split over two of `tp` ranks.
            ModelError: the config quantises only some of a fused linear's parts.
        """
        found = self._of_linear(prefix, shape)
        alike = (found, shape, dtype, tp)
        if alike not in self._tensors:
            self._tensors[alike] = (
                plain_linear(shape, dtype)
                if found is None
                else found.linear(prefix, shape, dtype, tp)
            )
        return self._tensors[alike]

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The tensors of `count` routed experts of one layer with `intermediate` rows each.

        Raises:
            PlanError: the format's blocks would be split.
            ModelError: the config quantises only some of an expert's matrices.
        """
        found = self._of_experts(prefix)
        if found is None:
            return plain_experts(count, hidden, intermediate, bias, dtype)
        return found.experts(prefix, count, hidden, intermediate, bias, dtype)

    def head(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The tensors of the output head, whose rows are this rank's share of the vocabulary.

        Raises:
            PlanError: the format's blocks or groups would be split over two of `tp` ranks.
        """
        found = self._choice.head(prefix) if shape.quantisable else None
        return (
            plain_linear(shape, dtype) if found is None else found.linear(prefix, shape, dtype, tp)
        )

    def precision(self, prefix: str, shape: Shape) -> Precision:
        """The rate at which the product of a linear runs."""
        found = self._of_linear(prefix, shape)
        return "bf16" if found is None else found.precision

    def experts_precision(self, prefix: str) -> Precision:
        """The rate at which the products of a layer's routed experts run."""
        found = self._of_experts(prefix)
        return "bf16" if found is None else found.precision

    def quantises(self, prefix: str, shape: Shape | None = None) -> bool:
        """Whether a linear, or without a shape a layer's routed experts, has a format.

        True also where the choice is not for modules at all, and where it is faulty: it is refused
        when the tensors are asked for.
        """
        if isinstance(self._choice, Nothing):
            return True
        try:
            return self.format(prefix, shape) is not None
        except ModelError:
            return True

    def format(self, prefix: str, shape: Shape | None) -> Format | None:
        """Of a linear, or without a shape of a layer's routed experts; None: it is not quantised.

        Raises:
            ModelError: the config quantises only some of its parts.
        """
        return self._of_experts(prefix) if shape is None else self._of_linear(prefix, shape)

    def head_format(self, prefix: str) -> Format | None:
        """Of the output head, whether or not vLLM's class tells it."""
        return self._choice.head(prefix)

    def quantises_head(self, prefix: str) -> bool:
        """Whether the output head has a format."""
        return self.head_format(prefix) is not None

    def _of_linear(self, prefix: str, shape: Shape) -> Format | None:
        if not shape.quantisable:
            return None
        if prefix not in self._linears:
            self._linears[prefix] = self._choice.linear(prefix)
        return self._linears[prefix]

    def _of_experts(self, prefix: str) -> Format | None:
        if prefix not in self._experts:
            self._experts[prefix] = self._choice.experts(prefix)
        return self._experts[prefix]


UNREAD: Final = Quantization("unread", Unread())
"""That of a blueprint as a family makes it."""
