"""The methods that vllm-ascend takes, and its classes of compressed-tensors."""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.quantization.served.compressed_tensors import ACTIVATIONS
from vllm_layershard.models.quantization.served.form import Form, Forms
from vllm_layershard.models.quantization.served.row import Row

VERSION: Final = "vllm-ascend 182b75e"

METHODS: Final = (
    *("ascend", "compressed-tensors", "fp8"),
    *("deepseek_v4_fp8", "modelopt_mxfp8", "mxfp8"),
)
"""Source: vllm-ascend 182b75e, platform.py, `NPUPlatform.supported_quantization`."""

_CONFIG: Final = "vllm-ascend 182b75e, quantization/compressed_tensors_config.py, "
_INT8: Final = Forms(("int8",), ("channel",), dynamic=False, symmetric=True)
_FP8: Final = _INT8._replace(kinds=("float8",))
_INT8_TENSOR: Final = _INT8._replace(strategies=("tensor",))
_INT8_TOKEN: Final = Forms(("int8",), ("token",), dynamic=True, symmetric=True)
_FP8_TOKEN: Final = _INT8_TOKEN._replace(kinds=("float8",))
_INT4_32: Final = Forms(("int4",), ("group",), dynamic=False, symmetric=True, groups=(32,))

_DYNAMIC: Final = (
    Row("W8A8_DYNAMIC", _INT8, (_INT8_TOKEN,), f"{_CONFIG}`_is_dynamic_token_w8a8`", ACTIVATIONS),
    Row("W8A8FP8_DYNAMIC", _FP8, (_FP8_TOKEN,), f"{_CONFIG}`_detect_quant_type`", ACTIVATIONS),
)

LINEARS: Final = (
    Row("W8A8", _INT8, (_INT8_TENSOR,), f"{_CONFIG}`_is_static_tensor_w8a8`", ACTIVATIONS),
    *_DYNAMIC,
)
"""`W8A8` does not ask for integers, and its class loads nothing else: methods/w8a8_static.py."""

EXPERTS: Final = (*_DYNAMIC, Row("W4A16", _INT4_32, (None,), f"{_CONFIG}`_is_w4a16`"))
"""`W4A16` takes groups of 32 whatever the groups say, and has no zero points: methods/w4a16.py,
`AscendW4A16FusedMoEMethod`. Of `W4A8_DYNAMIC` vLLM has no class off CPUs, so nobody asks here."""


def row_of_linears(weights: Form, inputs: Form | None, packing: str) -> Row | str:
    """The class of linears of these, or why there is none."""
    return _row(LINEARS, "linears", weights, inputs, packing)


def row_of_experts(weights: Form, inputs: Form | None, packing: str) -> Row | str:
    """The class of routed experts of these, or why there is none."""
    return _row(EXPERTS, "routed experts", weights, inputs, packing)


def _row(
    rows: tuple[Row, ...], what: str, weights: Form, inputs: Form | None, packing: str
) -> Row | str:
    row = next((row for row in rows if row.serves(weights, inputs, packing)), None)
    if row is not None:
        return row
    given = "unquantised" if inputs is None else str(inputs)
    packed = f" in the format {packing}" if packing else ""
    known = ", ".join(row.scheme for row in rows)
    return (
        f"{VERSION} has no class for {what} of {weights} with these activations ({given}){packed}; "
        f"it has {known}"
    )
