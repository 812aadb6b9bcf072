"""Bound: a format whose class vLLM builds on some devices only."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.split import parts_of
from vllm_layershard.models.quantization.served.needs import Needs
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Bound(NamedTuple):
    """`format` in all; `scheme` is vLLM's class, `needs` the devices that it is for."""

    format: Format
    scheme: str
    needs: Needs

    @property
    def name(self) -> str:
        """The format's."""
        return self.format.name

    @property
    def precision(self) -> Precision:
        """The format's."""
        return self.format.precision

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The format's.

        Raises:
            PlanError: as of the format.
        """
        return self.format.linear(prefix, shape, dtype, tp)

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The format's.

        Raises:
            PlanError: as of the format.
        """
        return self.format.experts(prefix, count, hidden, intermediate, bias, dtype)


def bound_of(prefix: str, found: Format) -> Bound | None:
    """What binds a linear or a layer's routed experts to some devices, by its name and format."""
    linears, experts = parts_of(found)
    inner = experts if prefix.endswith(".experts") else linears
    return inner if isinstance(inner, Bound) else None
