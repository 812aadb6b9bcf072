"""Split: linears in one format, and routed experts in another, where vLLM has both classes."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec


class Split(NamedTuple):
    """`of_linears` and `of_experts`: a format, or why they are refused."""

    of_linears: Format | str
    of_experts: Format | str

    @property
    def name(self) -> str:
        """That of the linears' format, or of the experts'."""
        return next((one.name for one in self if not isinstance(one, str)), "unread")

    @property
    def precision(self) -> Precision:
        """That of the linears' format, or of the experts'."""
        return next((one.precision for one in self if not isinstance(one, str)), "bf16")

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """As its format.

        Raises:
            PlanError: as its format.
            ModelError: vLLM has no linears of this kind, or the planner does not read them.
        """
        return _format(prefix, self.of_linears).linear(prefix, shape, dtype, tp)

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """As its format.

        Raises:
            PlanError: as its format.
            ModelError: as of linears.
        """
        found = _format(prefix, self.of_experts)
        return found.experts(prefix, count, hidden, intermediate, bias, dtype)


def joined(linears: Format | str, experts: Format | str) -> Format:
    """One format where both are alike."""
    if linears == experts and not isinstance(linears, str):
        return linears
    return Split(linears, experts)


def parts_of(found: Format) -> tuple[Format | str, Format | str]:
    """The format of linears and that of routed experts."""
    return (found.of_linears, found.of_experts) if isinstance(found, Split) else (found, found)


def _format(prefix: str, found: Format | str) -> Format:
    if isinstance(found, str):
        raise ModelError(f"{prefix}: {found}")
    return found
