"""Rows: how a weight is cut into stripes that a product can use.

Note [Stripes of rows]
A result of a linear is the dot product of its input with one output row of the weight. A rank that
stores whole rows makes their results alone, and adds up in the same order as the whole linear does.
Where a block of rows shares its scales, a stripe ends at such blocks. A stripe of rows is a stripe
of bytes like another: what moves a weight into a slot does not see a difference.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.config import KEY
from vllm_layershard.errors import PlanError
from vllm_layershard.plan.linear import Linear, TensorSpec

Stripe = tuple[int, int]
"""First byte, and the one after the last, in a layer's large tensors laid end to end."""

_WEIGHT: Final = "weight"
_BLOCK_SCALES: Final = "weight_scale_inv"
"""What vLLM calls the scales of fp8 in blocks, and of nothing else."""

_PLAIN: Final = ("bfloat16", "float16", "float32")


class Rows(NamedTuple):
    """The output rows of a weight: their number, the bytes of one, how many share scales."""

    number: int
    nbytes: int
    together: int = 1

    @property
    def unit_bytes(self) -> int:
        """Bytes of the rows that are never parted."""
        return self.together * self.nbytes

    def of(self, stripe: Stripe) -> tuple[int, int]:
        """The first row of a stripe, and the one after its last."""
        start, end = stripe
        assert start % self.nbytes == 0 == end % self.nbytes, f"{stripe} parts a row"
        return start // self.nbytes, end // self.nbytes

    def blocks_of(self, stripe: Stripe) -> tuple[int, int]:
        """The first block of rows that share scales of a stripe, and the one after its last."""
        first, end = self.of(stripe)
        return first // self.together, -(-end // self.together)


def rows_of(linear: Linear) -> Rows:
    """The rows of a linear that is not quantised, or that has fp8 scales of blocks.

    Raises:
        PlanError: it is quantised otherwise, or its tensors do not lie in rows.
    """
    tensors = {tensor.name: tensor for tensor in linear.tensors}
    weight, scales = tensors.get(_WEIGHT), tensors.get(_BLOCK_SCALES)
    others = tensors.keys() - {_WEIGHT, _BLOCK_SCALES, "bias"}
    if weight is None or others or not _is_known(weight, scales):
        kinds = ", ".join(f"{t.name}: {t.dtype}" for t in linear.tensors)
        raise _refused(
            linear,
            f"of its tensors ({kinds}) no rank can compute some rows; linears that are not "
            "quantised can be shared so, and fp8 in blocks",
        )
    if len(linear.large) > 1:
        raise _refused(linear, "it has so few columns that its bias would move, too")
    if not _is_in_rows(weight):
        raise _refused(linear, f"its weight does not lie in rows ({weight.layout})")
    count, nbytes = weight.shape[0], weight.nbytes // weight.shape[0]
    if scales is None:
        return Rows(count, nbytes)
    together = _rows_of_a_scale(count, scales.shape[0])
    if together is None or len(scales.shape) != 2 or not _is_in_rows(scales):
        raise _refused(
            linear, f"its scales ({scales.layout}) are not of blocks of its {count} rows"
        )
    return Rows(count, nbytes, together)


def _is_known(weight: TensorSpec, scales: TensorSpec | None) -> bool:
    if len(weight.shape) != 2 or not weight.nbytes:
        return False
    if scales is None:
        return weight.dtype in _PLAIN
    return weight.dtype == "float8_e4m3fn" and scales.dtype == "float32"


def _is_in_rows(tensor: TensorSpec) -> bool:
    """The planner's tensors have no strides: they lie as a checkpoint's do."""
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    return tensor.stride in ((), (columns, 1))


def _rows_of_a_scale(rows: int, scales: int) -> int | None:
    """The power of two that gives so many rows so many scales; None: there is none."""
    for together in (1 << exponent for exponent in range(rows.bit_length() + 1)):
        if -(-rows // together) == scales:
            return together
    return None


def _refused(linear: Linear, why: str) -> PlanError:
    return PlanError(
        f"{KEY}: {linear.prefix}: it would be placed as stripes of rows (placement 'striped' "
        f"where activations may move), but {why}; leave it out, or use placement 'round_robin'"
    )
