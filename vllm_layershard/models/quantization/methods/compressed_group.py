"""The format of one group of a compressed-tensors section: of weights and their activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from vllm_layershard.models.quantization.formats.bound import Bound
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.packed import Packed
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.formats.split import joined
from vllm_layershard.models.quantization.methods.fp8 import read_block
from vllm_layershard.models.quantization.served.compressed_tensors import EXPERTS, LINEARS
from vllm_layershard.models.quantization.served.form import Form
from vllm_layershard.models.quantization.served.group import Group
from vllm_layershard.models.quantization.served.row import Verdict, judge, weights_of
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_GROUPED: Final = ("group", "tensor_group")
_WHILE: Final = ("token", "tensor", "tensor_group", "group")
"""Strategies of what is quantised on the way."""


def format_of_group(section: ConfigFile, group: ConfigFile) -> Format:
    """What vLLM makes of the group's linears and of its routed experts.

    Source: vLLM 0.32, compressed_tensors.py, `_quantization_scheme_map_from_config`.

    Raises:
        ModelError: vLLM has no class for either.
    """
    stated = _weights(group)
    if group.get("output_activations") is not None:
        group.fail("output_activations", unread("quantised outputs"))
    if stated.get("actorder") not in (None, False, "weight", "static"):
        stated.fail("actorder", "vLLM no longer supports an activation order within groups")
    weights, inputs, packing = forms_of(section, group)
    read = Group(stated, weights, inputs)
    linears = judge(LINEARS, "linears", weights, inputs, packing)
    experts = judge(EXPERTS, "routed experts", weights, inputs, packing)
    if not linears.exists and not experts.exists:
        if any(row.takes(weights, packing) and not row.why for row in (*LINEARS, *EXPERTS)):
            group.fail("input_activations", linears.refused)
        stated.fail(
            "type",
            f"{weights}: vLLM 0.32 has no class for such weights in the format {shown(packing)}; "
            f"it has for {', '.join(weights_of(LINEARS, packing))}",
        )
    where = "config_groups: input_activations: "
    return joined(
        _made(linears, read) if linears.scheme else where + linears.refused,
        _made(experts, read) if experts.scheme else where + experts.refused,
    )


def forms_of(section: ConfigFile, group: ConfigFile) -> tuple[Form, Form | None, str]:
    """The group's weights, its activations where these are quantised, and its packing.

    Raises:
        ModelError: arguments that compressed-tensors refuses.
    """
    weights, activations = _form(_weights(group)), group.section("input_activations")
    inputs = _form(activations) if activations is not None and activations.values else None
    return weights, inputs, group.string("format") or section.string("format") or ""


def _weights(group: ConfigFile) -> ConfigFile:
    stated = group.section("weights")
    if stated is None:
        group.fail("weights", "is missing")
    return stated


def _made(verdict: Verdict, read: Group) -> Format:
    made = _MADE[verdict.scheme](read)
    return made if verdict.needs is None else Bound(made, verdict.scheme, verdict.needs)


def unread(what: str) -> str:
    """Why what vLLM has a class for is refused."""
    return f"{what} are not supported: vLLM 0.32 has a class, and the planner does not read it yet"


def _form(stated: ConfigFile) -> Form:
    """What compressed-tensors takes a tensor's arguments for, absent ones too.

    Source: compressed-tensors, quantization/quant_args.py, `QuantizationArgs`.

    Raises:
        ModelError: arguments that it refuses.
    """
    group = stated.optional_integer("group_size", low=-1, high=1 << 16)
    strategy = (stated.string("strategy") or _strategy(group)).lower()
    dynamic = bool(stated.get("dynamic"))
    kind = (stated.string("type") or "int").lower()
    bits = 8 if stated.get("num_bits") is None else stated.integer("num_bits", high=64)
    if kind == "float" and bits not in (4, 8):
        stated.fail("num_bits", "compressed-tensors has floats of four and of eight bits only")
    if strategy == "token" and not dynamic:
        stated.fail("strategy", "compressed-tensors has no static scales of tokens")
    if dynamic and strategy not in _WHILE:
        stated.fail("strategy", f"what is dynamic has one of {', '.join(_WHILE)}")
    if (group is not None and group > 0) != (strategy in _GROUPED):
        stated.fail("group_size", "is for the strategies group and tensor_group, and they need it")
    return Form(
        kind=f"{kind}{bits}",
        strategy=strategy,
        dynamic=dynamic,
        symmetric=stated.get("symmetric") is not False,
        group=group if strategy in _GROUPED else None,
        scales=(stated.string("scale_dtype") or "").removeprefix("torch."),
    )


def _strategy(group: int | None) -> str:
    return "tensor" if group is None else "group" if group > 0 else "channel"


def _nvfp4(group: Group) -> Format:
    return Nvfp4(
        name="compressed_tensors_nvfp4",
        group=16,
        weight="weight_packed",
        total="weight_global_scale",
        inputs="input_global_scale",
        weight_only=group.inputs is None,
    )


def _mxfp4(group: Group) -> Format:
    low_bit = group.inputs is not None
    return Microscaled("compressed_tensors_mxfp4", 4, "weight_packed", low_bit)


def _mxfp8(group: Group) -> Format:
    return Microscaled("compressed_tensors_mxfp8", 8)


def _packed(group: Group) -> Format:
    weights, inputs = group.weights, group.inputs
    assert not isinstance(weights.group, tuple), "it is packed by group or by row"
    return Packed(
        bits=int(weights.kind.removeprefix("int")),
        group=weights.group,
        symmetric=weights.symmetric is not False,
        inputs="" if inputs is None else _SHORT[inputs.kind],
    )


_SHORT: Final[Mapping[str, Literal["a8", "int8", "int4"]]] = {
    "float8": "a8",
    "int8": "int8",
    "int4": "int4",
}


def _float8(group: Group) -> Format:
    if group.weights.strategy == "block":
        block = read_block(group.stated, "block_structure")
        return Fp8Block(block, "weight_scale", refines=False, biases="none")
    return Scaled(
        name=f"compressed_tensors_fp8_{group.weights.strategy}",
        dtype="float8_e4m3fn",
        by_row=group.weights.strategy == "channel",
        static=group.static,
        biases="none",
    )


def _int8(group: Group) -> Format:
    return Scaled(
        name=f"compressed_tensors_int8_{group.weights.strategy}",
        dtype="int8",
        by_row=group.weights.strategy == "channel",
        static=group.static,
        once=True,
        shifted=group.inputs is not None and not group.inputs.symmetric,
    )


_MADE: Final[Mapping[str, Callable[[Group], Format]]] = {
    "CompressedTensorsW4A4Fp4": _nvfp4,
    "CompressedTensorsW4A8Mxfp4": _mxfp4,
    "CompressedTensorsW4A4Mxfp4": _mxfp4,
    "CompressedTensorsW8A8Mxfp8": _mxfp8,
    "CompressedTensorsW4A8Fp8": _packed,
    "CompressedTensorsWNA8Int": _packed,
    "CompressedTensorsWNA4Int": _packed,
    "CompressedTensorsWNA16": _packed,
    "CompressedTensorsW8A8Fp8": _float8,
    "CompressedTensorsW8A16Fp8": _float8,
    "CompressedTensorsW8A8Int8": _int8,
    "CompressedTensorsW4A4Nvfp4MoEMethod": _nvfp4,
    "CompressedTensorsW4A4Mxfp4MoEMethod": _mxfp4,
    "CompressedTensorsW8A8Mxfp8MoEMethod": _mxfp8,
    "CompressedTensorsW4A8Fp8MoEMethod": _packed,
    "CompressedTensorsWNA16MoEMethod": _packed,
    "CompressedTensorsW8A8Fp8MoEMethod": _float8,
    "CompressedTensorsW8A8Int8MoEMethod": _int8,
}
"""Class of vLLM's that the planner reads -> its tensors."""
