"""The classes of AMD's Quark, in the order in which vLLM tries them."""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.quantization.served.form import Forms
from vllm_layershard.models.quantization.served.needs import Needs
from vllm_layershard.models.quantization.served.row import Row

_FP8: Final = "fp8_e4m3"
_SIX: Final = ("fp6_e3m2", "fp6_e2m3")
_PACKED: Final = ("order", "reorder")

_TENSOR: Final = Forms((_FP8,), ("per_tensor",), dynamic=False)
_CHANNEL: Final = Forms((_FP8,), ("per_channel",), dynamic=False)
_BLOCK: Final = Forms((_FP8,), ("per_block",), dynamic=False, symmetric=True, groups=((128, 128),))
_BLOCK_E8M0: Final = _BLOCK._replace(scales=("float8_e8m0fnu",))
_INT8: Final = Forms(("int8",), ("per_tensor", "per_channel"), symmetric=True)
_INT4: Final = Forms(("int4", "uint4"))
_MX: Final = Forms(("fp4", *_SIX, _FP8), ("per_group",), groups=(32,), scales=("e8m0",))
_MX4: Final = _MX._replace(kinds=("fp4",))
_MX6_E3M2: Final = _MX._replace(kinds=("fp6_e3m2",))
_MX6_E2M3: Final = _MX._replace(kinds=("fp6_e2m3",))
_MX8_BLOCK: Final = _BLOCK_E8M0._replace(groups=tuple((1 << n, 32) for n in range(13)))
_NVFP4: Final = Forms(
    (f"fp4 and {_FP8}",), ("per_group and per_tensor",), dynamic=False, groups=(16,)
)
_FP8_INT4: Final = Forms((f"{_FP8} and int4",), ("per_tensor and per_channel",), dynamic=False)

_DYNAMIC: Final = Forms((_FP8,), dynamic=True)
_DYNAMIC_TENSOR: Final = Forms((_FP8,), ("per_tensor", "per_group", "per_block"), dynamic=True)
_DYNAMIC_ROWS: Final = Forms((_FP8,), ("per_channel",), dynamic=True)
_GROUPS: Final = Forms((_FP8,), ("per_group",), dynamic=True, symmetric=True, groups=(128,))
_STATIC: Final = Forms((_FP8,), ("per_tensor",), dynamic=False)
_STATIC_SYMMETRIC: Final = _STATIC._replace(symmetric=True)
_DYNAMIC_MX: Final = Forms(("fp4", *_SIX), dynamic=True)
_DYNAMIC_MX8: Final = Forms((_FP8,), ("per_group",), dynamic=True, groups=(32,))
_INT8_TENSOR: Final = Forms(("int8",), ("per_tensor",), dynamic=False)
_INT8_ROWS: Final = Forms(("int8",), ("per_channel",), dynamic=True)

_OF_LINEARS: Final = "quark.py, `_get_scheme_cls_from_config`, "
_OF_EIGHT: Final = f"{_OF_LINEARS}`_is_fp8_w8a8`; schemes/quark_w8a8_fp8.py, `get_min_capability`"
_ADA: Final = Needs(8.9, rocm=True)
_OF_EXPERTS: Final = "quark_moe.py, `get_moe_method_target`, "
_PAIRS: Final = f"{_OF_EXPERTS}`_is_fp8_w8a8`; `QuarkW8A8Fp8MoEMethod.__init__`"
_SCHEMES: Final = (
    f"{_OF_EXPERTS}`_is_w_ocp_mx_a_x`; utils/ocp_mx_utils.py, `OCP_MX_Scheme.from_quant_dtype`"
)

LINEARS: Final = (
    Row("QuarkNVFP4", _NVFP4, (_NVFP4._replace(dynamic=True),), f"{_OF_LINEARS}`_is_nvfp4`"),
    Row(
        "QuarkW8A8Fp8PerBlock",
        _BLOCK_E8M0,
        (_GROUPS,),
        f"{_OF_LINEARS}`_is_fp8_w8a8`",
        read=False,
    ),
    Row("QuarkW8A8Fp8PerBlock", _BLOCK, (_GROUPS,), _OF_EIGHT, needs=_ADA),
    Row("QuarkW8A8Fp8", _TENSOR, (_DYNAMIC, _STATIC), _OF_EIGHT, needs=_ADA),
    Row("QuarkW8A8Fp8", _CHANNEL, (_DYNAMIC, _STATIC), _OF_EIGHT, needs=_ADA),
    Row(
        "QuarkW8A8Int8",
        _INT8._replace(dynamic=False),
        (_INT8_TENSOR,),
        f"{_OF_LINEARS}`_is_w8a8_int8`",
    ),
    Row("QuarkW8A8Int8", _INT8, (_INT8_ROWS,), f"{_OF_LINEARS}`_is_w8a8_int8`"),
    Row("QuarkW4A16Int4", _INT4, (None,), f"{_OF_LINEARS}`_is_w4a16_int4`", _PACKED),
    Row(
        "QuarkW4A8_MXFP4_FP8",
        _MX4._replace(dynamic=False),
        (_STATIC_SYMMETRIC,),
        f"{_OF_LINEARS}`_is_w4a8_mxfp4_fp8`",
    ),
    Row(
        "QuarkOCP_MX",
        _MX,
        (None, _DYNAMIC_MX8, _DYNAMIC_MX),
        f"{_OF_LINEARS}`_is_w_ocp_mx_a_x`; quark_ocp_mx.py, `supported_activation_quant_keys`",
    ),
    Row(
        "QuarkOCP_MX",
        _MX8_BLOCK,
        (None, _DYNAMIC_MX8, _DYNAMIC_MX),
        f"{_OF_LINEARS}`_is_w_ocp_mx_a_x`; utils/ocp_mx_utils.py, `ocp_mx_weight_dtype_and_rows`",
        read=False,
    ),
)

EXPERTS: Final = (
    Row(
        "QuarkW4A8Fp8MoEMethod",
        _FP8_INT4,
        (_DYNAMIC, _STATIC),
        f"{_OF_EXPERTS}`_is_fp8_w4a8`; `QuarkW4A8Fp8MoEMethod.__init__`",
        why="its kernels are those of ROCm's AITER only",
    ),
    Row(
        "QuarkNvfp4MoEMethod", _NVFP4, (_NVFP4._replace(dynamic=True),), f"{_OF_EXPERTS}`_is_nvfp4`"
    ),
    Row("QuarkW8A8Fp8MoEMethod", _TENSOR, (_DYNAMIC_TENSOR, _STATIC), _PAIRS),
    Row("QuarkW8A8Fp8MoEMethod", _CHANNEL, (_DYNAMIC_ROWS,), _PAIRS),
    Row(
        "QuarkW8A8Fp8MoEMethod",
        _BLOCK_E8M0,
        (_GROUPS,),
        f"{_OF_EXPERTS}`_is_fp8_w8a8`; `QuarkW8A8Fp8MoEMethod.supported_weight_quant_keys`",
        why="it takes no scales in float8_e8m0fnu",
    ),
    Row("QuarkW8A8Fp8MoEMethod", _BLOCK, (_GROUPS,), _PAIRS),
    Row("QuarkW4A16Int4MoEMethod", _INT4, (None,), f"{_OF_EXPERTS}`_is_w4a16_int4`", _PACKED),
    Row("QuarkOCP_MX_MoEMethod", _MX4, (None, _DYNAMIC_MX, _STATIC_SYMMETRIC), _SCHEMES),
    Row(
        "QuarkOCP_MX_MoEMethod",
        _MX6_E3M2,
        (None, Forms(("fp6_e3m2",), dynamic=True), _STATIC_SYMMETRIC),
        _SCHEMES,
    ),
    Row(
        "QuarkOCP_MX_MoEMethod",
        _MX6_E2M3,
        (None, Forms(("fp6_e2m3",), dynamic=True), _STATIC_SYMMETRIC),
        _SCHEMES,
    ),
    Row(
        "QuarkW8A8Int8MoEMethod",
        _INT8._replace(dynamic=False),
        (_INT8_TENSOR,),
        f"{_OF_EXPERTS}`_is_w8a8_int8`",
    ),
    Row("QuarkW8A8Int8MoEMethod", _INT8, (_INT8_ROWS,), f"{_OF_EXPERTS}`_is_w8a8_int8`"),
)
