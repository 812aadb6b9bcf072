"""Format: what tensors a number format makes of a linear and of routed experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, Protocol

from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.operation import Precision
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import TensorSpec

Biases = Literal["none", "model", "float32"]
"""The dtype of routed experts' biases. `none`: vLLM's method creates none, though its model has."""


class Format(Protocol):
    """One number format with its settings; all shapes and bytes are those of one rank."""

    @property
    def name(self) -> str:
        """The method with what tells it from its kin: `fp8_block_128x128`."""

    @property
    def precision(self) -> Precision:
        """The rate at which a product with weights of this format runs."""

    def linear(self, prefix: str, shape: Shape, dtype: str, tp: int) -> tuple[TensorSpec, ...]:
        """The tensors of a linear after vLLM created it, in the order weight, scales, bias.

        Raises:
            PlanError: the format's blocks or groups would be split over two of `tp` ranks.
        """

    def experts(
        self, prefix: str, count: int, hidden: int, intermediate: int, bias: bool, dtype: str
    ) -> tuple[TensorSpec, ...]:
        """The tensors of `count` routed experts of one layer with `intermediate` rows each.

        Raises:
            PlanError: the format's blocks would be split.
        """


@lru_cache(maxsize=1 << 12)  # layers are alike, and each asks for the same few
def tensor(name: str, shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """A contiguous tensor."""
    if not shape:
        return TensorSpec(name, shape, dtype, DTYPE_BYTES[dtype], ())
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    elements = strides[-1] * shape[0]
    return TensorSpec(name, shape, dtype, elements * DTYPE_BYTES[dtype], tuple(reversed(strides)))


def plain_linear(shape: Shape, dtype: str) -> tuple[TensorSpec, ...]:
    """An unquantised linear.

    Source: vLLM 0.32, layers/linear.py, `UnquantizedLinearMethod.create_weights`.
    """
    sizes = (shape.rows, 1, shape.inner) if shape.convolution else (shape.rows, shape.inner)
    return (tensor("weight", sizes, shape.dtype or dtype), *bias_of(shape, dtype))


def bias_of(shape: Shape, dtype: str) -> tuple[TensorSpec, ...]:
    """The bias, which no method quantises."""
    return (tensor("bias", (shape.rows,), shape.dtype or dtype),) if shape.bias else ()


def plain_experts(
    count: int, hidden: int, intermediate: int, bias: bool, dtype: str
) -> tuple[TensorSpec, ...]:
    """Unquantised experts.

    Source: vLLM 0.32, `UnquantizedFusedMoEMethod.create_weights`.
    """
    return (
        tensor("w13_weight", (count, 2 * intermediate, hidden), dtype),
        tensor("w2_weight", (count, hidden, intermediate), dtype),
        *expert_biases(count, hidden, intermediate, bias, dtype),
    )


def expert_matrices(hidden: int, intermediate: int) -> tuple[tuple[str, int, int], ...]:
    """What vLLM stacks of each expert, with rows and columns: gate and up in one, and down."""
    return (("w13", 2 * intermediate, hidden), ("w2", hidden, intermediate))


def grouped_matrices(
    prefix: str, hidden: int, intermediate: int, group: int | None
) -> Iterator[tuple[str, int, int, int]]:
    """`expert_matrices`, each with its groups of columns: see `groups_of`.

    Raises:
        PlanError: a group would be split over two ranks.
    """
    for name, rows, inner in expert_matrices(hidden, intermediate):
        yield name, rows, inner, groups_of(prefix, inner, group)


def expert_biases(
    count: int, hidden: int, intermediate: int, bias: bool, dtype: str, kept: Biases = "model"
) -> tuple[TensorSpec, ...]:
    """The biases of experts that have them, as far as their method keeps any."""
    if not bias or kept == "none":
        return ()
    dtype = dtype if kept == "model" else kept
    return (
        tensor("w13_bias", (count, 2 * intermediate), dtype),
        tensor("w2_bias", (count, hidden), dtype),
    )


def check_loaded(prefix: str, bias: bool, method: str) -> None:
    """Refuse experts with biases, which gpt-oss alone has, in a packing that no loader reads.

    The weights would stay empty, and their biases be dropped, without a word.
    Source: vLLM 0.32, models/gpt_oss.py, `GptOssModel._load_weights_other`, which passes over every
    `qweight` of an expert.

    Raises:
        ModelError: names the experts and the method.
    """
    if bias:
        raise ModelError(
            f"{prefix}: routed experts with biases in {method}: vLLM 0.32 loads none of them, and "
            "would serve gpt-oss with empty experts; give a checkpoint in another method, such as "
            "mxfp4"
        )


def check_groups(prefix: str, columns: int, group: int) -> None:
    """Refuse a layout that splits a group of columns with one scale over two ranks.

    Raises:
        PlanError: names the linear and the group.
    """
    if columns % group:
        raise PlanError(
            f"{prefix}: {columns:,} columns on a rank are not a multiple of the group of {group}; "
            "use fewer ranks, or --ep for routed experts"
        )


def groups_of(prefix: str, columns: int, group: int | None) -> int:
    """How many groups of columns have a scale each in a row; None: the whole row has one.

    Raises:
        PlanError: a group would be split over two ranks.
    """
    if group is None:
        return 1
    check_groups(prefix, columns, group)
    return columns // group


def check_packing(prefix: str, elements: int, pack: int) -> None:
    """Refuse a layout that splits the elements of one int32 over two ranks.

    Raises:
        PlanError: names the linear.
    """
    if elements % pack:
        raise PlanError(
            f"{prefix}: {elements:,} elements on a rank are not a multiple of the {pack} that are "
            "packed in an int32; use fewer ranks"
        )
