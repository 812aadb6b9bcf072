"""The format of one group of a compressed-tensors section: of weights and their activations."""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.packed import Packed
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.methods.fp8 import read_block
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_STATIC_EXPERTS: Final = (
    "vLLM 0.32 has no class for routed experts in int8 with static activations; it takes dynamic "
    "ones of tokens"
)
_INT8_EXPERTS: Final = (
    "config_groups: weights: strategy: vLLM 0.32 has no class for routed experts in int8 with one "
    "scale a tensor; it takes 'channel'"
)
_PAIRS: Final = {"tensor": "tensor", "channel": "token"}
"""Strategy of routed experts' fp8 weights -> that of their activations."""

_EIGHT: Final = (
    "config_groups: input_activations: vLLM 0.32 has a class for routed experts in mxfp4 with fp8 "
    "activations, and the planner does not read it yet"
)

_ACTIVATIONS = ("naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized")
"""Formats whose activations are quantised, too.
Source: vLLM 0.32, compressed_tensors/utils.py, `is_activation_quantization_format`."""


def format_of_group(section: ConfigFile, group: ConfigFile) -> Format:
    """Source: vLLM 0.32, `CompressedTensorsConfig._get_scheme_from_parts`."""
    weights = group.section("weights")
    if weights is None:
        group.fail("weights", "is missing")
    inputs = group.section("input_activations")
    form = group.string("format") or section.string("format")
    if group.get("output_activations") is not None:
        group.fail("output_activations", unread("quantised outputs"))
    if weights.boolean("dynamic"):
        weights.fail("dynamic", "vLLM 0.32 has no class for weights that are quantised on the way")
    kind, bits = weights.string("type"), weights.integer("num_bits", high=64)
    strategy = weights.string("strategy") or ("group" if weights.get("group_size") else None)
    if kind == "float" and bits == 4:
        return _float4(weights, inputs, strategy)
    if kind == "float" and bits == 8 and strategy == "group" and weights.get("group_size"):
        if weights.get("scale_dtype") not in ("torch.uint8", "uint8"):
            weights.fail("scale_dtype", "vLLM 0.32 has a class for fp8 by group with uint8 only")
        return _microscaled(weights, "compressed_tensors_mxfp8", 8, "weight", low_bit=True)
    if form == "pack-quantized" and kind == "int":
        return _packed(weights, inputs, bits, strategy)
    if form in _ACTIVATIONS and (kind, bits) == ("float", 8):
        return _float8(weights, inputs, strategy)
    if form in _ACTIVATIONS and (kind, bits) == ("int", 4):
        weights.fail("num_bits", unread("four-bit integers that are not packed"))
    if form not in _ACTIVATIONS or (kind, bits) != ("int", 8):
        weights.fail(
            "type",
            f"{shown(kind)} in {bits} bits with format {shown(form)} is not supported: vLLM 0.32 "
            "has no class for it; supported are float-quantized (fp8), int-quantized (int8), "
            "pack-quantized (int2 to int8), nvfp4-, mxfp4- and mxfp8-pack-quantized",
        )
    return _int8(weights, inputs, strategy)


def unread(what: str) -> str:
    """Why what vLLM has a class for is refused."""
    return f"{what} are not supported: vLLM 0.32 has a class, and the planner does not read it yet"


def _symmetric(weights: ConfigFile) -> None:
    if weights.get("symmetric") is False:
        weights.fail("symmetric", "vLLM 0.32 has no class for such weights that are not symmetric")


def _float4(weights: ConfigFile, inputs: ConfigFile | None, strategy: str | None) -> Format:
    _symmetric(weights)
    if strategy == "group":
        low, eight = inputs is not None, inputs is not None and _are_dynamic_fp8(inputs)
        found = _microscaled(weights, "compressed_tensors_mxfp4", 4, "weight_packed", low_bit=low)
        return found._replace(unrouted=_EIGHT) if eight else found
    if strategy != "tensor_group" or weights.integer("group_size", low=1, high=1 << 16) != 16:
        weights.fail("group_size", "nvfp4 has groups of 16")
    if inputs is not None and _nvfp4_kind(inputs) != ("float", 4, "tensor_group", 16, True):
        inputs.fail("type", "vLLM 0.32 has a class for nvfp4 weights with nvfp4 activations only")
    return Nvfp4(
        name="compressed_tensors_nvfp4",
        group=16,
        weight="weight_packed",
        total="weight_global_scale",
        inputs="input_global_scale",
        weight_only=inputs is None,
    )


def _nvfp4_kind(inputs: ConfigFile) -> tuple[object, ...]:
    """Source: vLLM 0.32, `CompressedTensorsConfig._is_nvfp4_format`."""
    keys = ("type", "num_bits", "strategy", "group_size")
    return (*map(inputs.get, keys), inputs.get("symmetric") is not False)


def _are_dynamic_fp8(inputs: ConfigFile) -> bool:
    """Source: vLLM 0.32, `CompressedTensorsConfig._is_mxfp4_w4a8_fp8`."""
    return (
        (inputs.get("type"), inputs.get("num_bits")) == ("float", 8)
        and bool(inputs.get("dynamic"))
        and _strategy(inputs) in ("token", "group")
        and inputs.get("symmetric") is not False
    )


def _strategy(arguments: ConfigFile) -> str:
    """What is stated, or what compressed-tensors takes without a word."""
    return arguments.string("strategy") or ("group" if arguments.get("group_size") else "tensor")


def _microscaled(
    weights: ConfigFile, name: str, bits: int, weight: str, *, low_bit: bool
) -> Microscaled:
    _symmetric(weights)
    if weights.integer("group_size", low=1, high=1 << 16) != 32:
        weights.fail("group_size", "vLLM 0.32 has a class for floats in groups of 32 only")
    return Microscaled(name, bits, weight, low_bit)


def _packed(
    weights: ConfigFile, inputs: ConfigFile | None, bits: int, strategy: str | None
) -> Packed:
    if weights.get("actorder") not in (None, False, "weight", "static"):
        weights.fail("actorder", "vLLM no longer supports an activation order within groups")
    if not 2 <= bits <= 8:
        weights.fail("num_bits", f"vLLM 0.32 has no class for {bits} bits that are packed")
    if strategy not in ("group", "channel"):
        weights.fail("strategy", "vLLM 0.32 packs integers by 'group' and 'channel' only")
    group = weights.integer("group_size", high=1 << 16) if strategy == "group" else None
    symmetric = weights.get("symmetric") is not False
    if inputs is None:
        return Packed(bits, group, symmetric)
    of_inputs = (inputs.string("type"), inputs.integer("num_bits", high=64))
    if of_inputs in (("int", 8), ("int", 4)):
        return _packed_integers(inputs, Packed(bits, group, symmetric), of_inputs[1])
    if of_inputs != ("float", 8):
        inputs.fail("type", "vLLM 0.32 has a class for activations in int8, int4 and fp8 only here")
    if bits != 4 or group is None or not symmetric:
        weights.fail("num_bits", "vLLM 0.32 has a class for four symmetric bits by group only here")
    if not _are_dynamic_fp8(inputs) or _strategy(inputs) != "token":
        inputs.fail("strategy", "vLLM 0.32 has a class for dynamic symmetric tokens only here")
    return Packed(bits, group, symmetric, inputs="a8")


def _packed_integers(inputs: ConfigFile, packed: Packed, bits: int) -> Packed:
    """Source: vLLM 0.32, `CompressedTensorsConfig._is_wNaM_int`; of experts, `get_moe_method`."""
    kind = inputs.string("strategy")
    if not inputs.get("dynamic") or kind not in ("token", "group"):
        inputs.fail(
            "strategy", "vLLM 0.32 has a class for dynamic activations by token and group only here"
        )
    if inputs.get("symmetric") is False:
        inputs.fail("symmetric", "vLLM 0.32 has no class for such activations here")
    routed = (packed.bits, bits, kind, packed.symmetric) == (4, 8, "token", True)
    why = (
        unread("routed experts of int4 weights with int8 activations")
        if routed
        else "vLLM 0.32 has no class for routed experts of packed weights with such activations"
    )
    return packed._replace(inputs="int8" if bits == 8 else "int4", unrouted=why)


def _float8(weights: ConfigFile, inputs: ConfigFile | None, strategy: str | None) -> Format:
    _symmetric(weights)
    static = inputs is not None and not inputs.get("dynamic")
    if strategy == "block" and not static:
        block = read_block(weights, "block_structure")
        return Fp8Block(
            block, "weight_scale", refines=False, biases="none", unrouted=_unrouted(inputs, "block")
        )
    if strategy not in ("tensor", "channel"):
        weights.fail("strategy", f"{shown(strategy)} is not supported with fp8 weights")
    if static and inputs is not None and inputs.string("strategy") != "tensor":
        inputs.fail("strategy", "static activations are supported with one scale a tensor only")
    return Scaled(
        name=f"compressed_tensors_fp8_{strategy}",
        dtype="float8_e4m3fn",
        by_row=strategy == "channel",
        static=static,
        biases="none",
        unrouted=_unrouted(inputs, strategy),
    )


def _unrouted(inputs: ConfigFile | None, strategy: str) -> str:
    """Why vLLM has no routed experts of fp8 weights with these activations; empty: it has.

    Source: vLLM 0.32, compressed_tensors_moe.py, `get_moe_method`, and
    `CompressedTensorsW8A8Fp8MoEMethod`.
    """
    if inputs is None:
        return (
            "config_groups: input_activations: is missing, and vLLM 0.32 has no class for routed "
            "experts of fp8 weights alone; of weights alone it takes the format pack-quantized"
        )
    kind = _strategy(inputs)
    fits = inputs.get("type") == "float" and (
        bool(inputs.get("dynamic")) if strategy == "block" else kind == _PAIRS[strategy]
    )
    if fits and (inputs.get("dynamic") or inputs.get("symmetric") is not False):
        return ""
    return (
        f"config_groups: input_activations: {kind!r} activations with fp8 weights by {strategy!r}: "
        "vLLM 0.32 has no class for such routed experts; it takes 'tensor' with 'tensor', 'token' "
        "with 'channel', and dynamic ones with 'block', all of them floats"
    )


def _int8(weights: ConfigFile, inputs: ConfigFile | None, strategy: str | None) -> Scaled:
    _symmetric(weights)
    if strategy not in ("tensor", "channel") or inputs is None:
        weights.fail(
            "strategy", "supported are int8 rows and tensors ('channel', 'tensor') with activations"
        )
    kind, static = inputs.string("strategy"), not inputs.get("dynamic")
    if kind != ("tensor" if static else "token") and not (kind is None and not static):
        inputs.fail(
            "strategy",
            f"{shown(kind)}: vLLM 0.32 has a class for int8 activations with one static scale a "
            "tensor ('tensor'), or dynamic ones of tokens ('token')",
        )
    return Scaled(
        name=f"compressed_tensors_int8_{strategy}",
        dtype="int8",
        by_row=strategy == "channel",
        static=static,
        once=True,
        shifted=inputs.get("symmetric") is False,
        unrouted=_STATIC_EXPERTS if static else _INT8_EXPERTS if strategy == "tensor" else "",
    )
