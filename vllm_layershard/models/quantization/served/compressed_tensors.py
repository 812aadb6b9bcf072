"""The classes of compressed-tensors, in the order in which vLLM tries them."""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.quantization.served.form import Forms
from vllm_layershard.models.quantization.served.needs import Needs
from vllm_layershard.models.quantization.served.row import ANY, Row

ACTIVATIONS: Final = (
    *("naive-quantized", "int-quantized", "float-quantized"),
    "nvfp4-pack-quantized",
)
"""Source: vLLM 0.32, compressed_tensors/utils.py, `is_activation_quantization_format`."""

_PACKED: Final = ("pack-quantized",)
_EIGHT: Final = ("float8", "int8")
_INTEGERS: Final = tuple(f"int{bits}" for bits in range(2, 9))
_ROWS: Final = ("tensor", "channel")
_SPANS: Final = ("channel", "group")

NVFP4: Final = Forms(("float4",), ("tensor_group",), symmetric=True, groups=(16,))
MXFP4: Final = Forms(("float4",), ("group",), symmetric=True, groups=(32,))
_MXFP8: Final = MXFP4._replace(kinds=("float8",), scales=("uint8",))
_FP8: Final = Forms(("float8",), _ROWS, dynamic=False, symmetric=True)
_FP8_TENSOR: Final = _FP8._replace(strategies=("tensor",))
_FP8_CHANNEL: Final = _FP8._replace(strategies=("channel",))
_FP8_BLOCK: Final = _FP8._replace(strategies=("block",))
_INT8: Final = Forms(("int8",), _ROWS, dynamic=False, symmetric=True)
_INT8_CHANNEL: Final = _INT8._replace(strategies=("channel",))
_PACKS: Final = Forms(_INTEGERS, _SPANS, dynamic=False)
_INT4: Final = Forms(("int4",), _SPANS, dynamic=False, symmetric=True)
_INT4_GROUP: Final = _INT4._replace(strategies=("group",))
_INT4_128: Final = _INT4_GROUP._replace(groups=(128,))

_FLOATS: Final = Forms(("float4", "float8"), dynamic=True)
_FLOAT_TENSOR: Final = Forms(("float4", "float8"), ("tensor",), dynamic=False, symmetric=True)
_FP8_TOKEN: Final = Forms(("float8",), ("token",), dynamic=True, symmetric=True)
_FP8_SPAN: Final = _FP8_TOKEN._replace(strategies=("token", "group"))
_INT8_SPAN: Final = _FP8_SPAN._replace(kinds=("int8",))
_INT4_SPAN: Final = _FP8_SPAN._replace(kinds=("int4",))
_STATIC_TENSOR: Final = Forms(_EIGHT, ("tensor",), dynamic=False)
_DYNAMIC_TOKEN: Final = Forms(_EIGHT, ("token",), dynamic=True)
_INT8_TOKEN: Final = Forms(("int8",), ("token",), dynamic=True)

_PARTS: Final = "compressed_tensors.py, `_get_scheme_from_parts`, "
_MOE: Final = "compressed_tensors_moe.py, `get_moe_method`, "
_HOPPER: Final = Needs(9.0, alone=True)
_CUDA: Final = Needs(7.5)

LINEARS: Final = (
    Row("CompressedTensorsW4A4Fp4", NVFP4, (None, NVFP4), f"{_PARTS}`_is_nvfp4_format`"),
    Row("CompressedTensorsW4A8Mxfp4", MXFP4, (_FP8_SPAN,), f"{_PARTS}`_is_mxfp4_w4a8_fp8`"),
    Row("CompressedTensorsW4A4Mxfp4", MXFP4, ANY, f"{_PARTS}`_is_mxfp4`"),
    Row("CompressedTensorsW8A8Mxfp8", _MXFP8, ANY, f"{_PARTS}`_is_mxfp8`"),
    Row(
        "CompressedTensorsW4A8Fp8",
        _INT4_128,
        (_FP8_TOKEN,),
        f"{_PARTS}`_is_fp8_w4a8_sm90`",
        needs=_HOPPER,
    ),
    Row(
        "CompressedTensorsW4A8Fp8",
        _INT4_GROUP,
        (_FP8_TOKEN,),
        "schemes/compressed_tensors_w4a8_fp8.py, `__init__`",
        why="its kernels take groups of 128",
    ),
    Row("CompressedTensorsWNA8Int", _PACKS, (_INT8_SPAN,), f"{_PARTS}`_is_wNaM_int`", _PACKED),
    Row("CompressedTensorsWNA4Int", _PACKS, (_INT4_SPAN,), f"{_PARTS}`_is_wNaM_int`", _PACKED),
    Row("CompressedTensorsWNA16", _PACKS, (None,), f"{_PARTS}`_is_wNa16_group_channel`", _PACKED),
    Row(
        "CompressedTensorsW8A8Fp8",
        _FP8,
        (_FLOATS, _FLOAT_TENSOR),
        f"{_PARTS}`_is_fp8_w8a8`",
        ACTIVATIONS,
    ),
    Row(
        "CompressedTensorsW8A8Fp8",
        _FP8_BLOCK,
        (_FLOATS,),
        f"{_PARTS}`_is_fp8_w8a8`",
        ACTIVATIONS,
    ),
    Row(
        "CompressedTensorsW8A8Fp8",
        _FP8_BLOCK,
        (_FLOAT_TENSOR,),
        "schemes/compressed_tensors_w8a8_fp8.py, `__init__`",
        ACTIVATIONS,
        why="blocks have no static activations",
    ),
    Row("CompressedTensorsW8A16Fp8", _FP8, ANY, f"{_PARTS}`_is_fp8_w8a16`", ACTIVATIONS),
    Row(
        "CompressedTensorsW8A16Fp8",
        _FP8_BLOCK,
        (Forms(dynamic=False),),
        f"{_PARTS}`_is_fp8_w8a16`",
        ACTIVATIONS,
        read=False,
    ),
    Row("CompressedTensorsW8A16Fp8", _FP8_BLOCK, ANY, f"{_PARTS}`_is_fp8_w8a16`", ACTIVATIONS),
    Row(
        "CompressedTensorsW8A8Int8",
        _INT8,
        (_STATIC_TENSOR,),
        f"{_PARTS}`_is_static_tensor_w8a8`",
        ACTIVATIONS,
    ),
    Row(
        "CompressedTensorsW8A8Int8",
        _INT8,
        (_DYNAMIC_TOKEN,),
        f"{_PARTS}`_is_dynamic_token_w8a8`",
        ACTIVATIONS,
    ),
    Row(
        "CompressedTensorsW4A8Int",
        _INT4,
        (_INT8_TOKEN,),
        f"{_PARTS}`_is_dynamic_token_w4a8_int`",
        ACTIVATIONS,
        read=False,
    ),
)
"""vLLM chooses some by the device; here as on CUDA. Below 8.9 fp8 has `CompressedTensorsW8A16Fp8`,
whose tensors are the same."""

EXPERTS: Final = (
    Row(
        "CompressedTensorsW4A8Mxfp4MoEMethod",
        MXFP4,
        (_FP8_SPAN,),
        f"{_MOE}`_is_mxfp4_w4a8_fp8`",
        read=False,
    ),
    Row("CompressedTensorsW4A4Mxfp4MoEMethod", MXFP4, ANY, f"{_MOE}`_is_mxfp4`"),
    Row("CompressedTensorsW8A8Mxfp8MoEMethod", _MXFP8, ANY, f"{_MOE}`_is_mxfp8`"),
    Row(
        "CompressedTensorsWNA16MoEMethod",
        _PACKS,
        (None,),
        f"{_MOE}`_is_wNa16_group_channel`",
        _PACKED,
    ),
    Row(
        "CompressedTensorsWNA16MoEMethod",
        Forms(strategies=_SPANS),
        (None,),
        f"{_MOE}`valid_format_and_bits`",
        why="weights alone are integers of the format pack-quantized",
    ),
    Row("CompressedTensorsW4A4Nvfp4MoEMethod", NVFP4, (None, NVFP4), f"{_MOE}`_is_nvfp4_format`"),
    Row(
        "CompressedTensorsW8A8Fp8MoEMethod",
        _FP8_TENSOR,
        (_FLOATS._replace(strategies=("tensor",)), _FLOAT_TENSOR),
        f"{_MOE}`_is_fp8_w8a8`; compressed_tensors_moe_w8a8_fp8.py, `__init__`",
    ),
    Row(
        "CompressedTensorsW8A8Fp8MoEMethod",
        _FP8_CHANNEL,
        (_FLOATS._replace(strategies=("token",)),),
        f"{_MOE}`_is_fp8_w8a8`; compressed_tensors_moe_w8a8_fp8.py, `__init__`",
    ),
    Row(
        "CompressedTensorsW8A8Fp8MoEMethod",
        _FP8_BLOCK,
        (_FLOATS,),
        f"{_MOE}`_is_fp8_w8a8`; compressed_tensors_moe_w8a8_fp8.py, `__init__`",
    ),
    Row(
        "CompressedTensorsW8A8Fp8MoEMethod",
        _FP8_BLOCK,
        (_FLOAT_TENSOR,),
        f"{_MOE}`_is_fp8_w8a8`; compressed_tensors_moe_w8a8_fp8.py, `__init__`",
        read=False,
    ),
    Row(
        "CompressedTensorsW8A8Int8MoEMethod",
        _INT8_CHANNEL,
        (_DYNAMIC_TOKEN,),
        f"{_MOE}`_is_dynamic_token_w8a8`; compressed_tensors_moe_w8a8_int8.py, `__init__`",
    ),
    Row(
        "CompressedTensorsW8A8Int8MoEMethod",
        _FP8_CHANNEL,
        (_INT8_TOKEN,),
        f"{_MOE}`_is_dynamic_token_w8a8`, which takes these floats for integers",
        read=False,
    ),
    Row(
        "CompressedTensorsW4A8Fp8MoEMethod",
        _INT4_128,
        (_FP8_TOKEN,),
        f"{_MOE}`_is_fp8_w4a8`; fused_moe/oracle/w4a8.py, `select_w4a8_moe_backend`",
        needs=_CUDA,
    ),
    Row(
        "CompressedTensorsW4A8Int8MoEMethod",
        _INT4,
        (_INT8_TOKEN,),
        "fused_moe/oracle/w4a8_int8.py, `select_w4a8_int8_moe_backend`",
        why="its kernels are for CPUs only",
    ),
)
