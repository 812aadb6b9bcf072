"""The format of one group of a quark section: of weights and their activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from vllm_layershard.models.quantization.formats.bound import Bound
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.microscaled import Microscaled, Rounding
from vllm_layershard.models.quantization.formats.nibbles import Nibbles
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.formats.split import joined
from vllm_layershard.models.quantization.served.form import Form
from vllm_layershard.models.quantization.served.group import Group
from vllm_layershard.models.quantization.served.quark import EXPERTS, LINEARS
from vllm_layershard.models.quantization.served.row import Verdict, judge, weights_of
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_MICROSCALED: Final = {"fp4": 4, "fp6_e3m2": 6, "fp6_e2m3": 6, "fp8_e4m3": 8}
"""Dtype -> bits of a weight of those with one exponent for 32."""


def format_of_group(group: ConfigFile, packs: str) -> Format:
    """What vLLM makes of the group's linears and of its routed experts.

    `packs`: how integers of four bits are packed.

    Raises:
        ModelError: vLLM has no class for either.
    """
    for key in ("output_tensors", "bias"):
        if group.get(key):
            group.fail(key, "vLLM 0.32 has no class for them in quark's checkpoints")
    stated = _tensors(group, "weight")
    if not stated:
        group.fail("weight", "is missing, so no source states the bytes of the weights")
    weights, activations = _form(stated), _tensors(group, "input_tensors")
    inputs = _form(activations) if activations else None
    linears = judge(LINEARS, "linears", weights, inputs, packs)
    experts = judge(EXPERTS, "routed experts", weights, inputs, packs)
    if not linears.exists and not experts.exists:
        if any(row.takes(weights, packs) and not row.why for row in (*LINEARS, *EXPERTS)):
            group.fail("input_tensors", linears.refused)
        group.fail(
            "weight",
            f"{weights}: vLLM 0.32 has no class for such weights; it has for "
            f"{', '.join(weights_of(LINEARS, packs))}",
        )
    read, where = Group(stated[0], weights, inputs), "input_tensors: "
    return joined(
        _made(linears, read) if linears.scheme else where + linears.refused,
        _made(experts, read) if experts.scheme else where + experts.refused,
    )


def _made(verdict: Verdict, read: Group) -> Format:
    made = _MADE[verdict.scheme](read)
    return made if verdict.needs is None else Bound(made, verdict.scheme, verdict.needs)


def _tensors(group: ConfigFile, key: str) -> tuple[ConfigFile, ...]:
    """One entry for each kind of a tensor's scales; a list of one is the same as the one.

    Source: vLLM 0.32, quark.py, `_unwrap_single_quant_config`.

    Raises:
        ModelError: no entries.
    """
    value: Any = group.get(key)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    for entry in entries:
        if not isinstance(entry, Mapping):
            group.fail(key, f"{shown(entry)} is not an object")
    if len(entries) > _MAX_SCALES:
        group.fail(key, f"has {len(entries):,} kinds of scales; vLLM 0.32 has a class for two")
    return tuple(ConfigFile(f"{group.where}: {key}", entry) for entry in entries)


_MAX_SCALES: Final = 2


def _form(entries: tuple[ConfigFile, ...]) -> Form:
    """Of several kinds of scales all words; `dynamic` and the group are the first one's."""
    first, *rest = entries
    schemes = [first.string("qscheme") or "none"]
    schemes += [
        f"{'dynamic ' if entry.get('is_dynamic') else ''}{entry.string('qscheme') or 'none'}"
        for entry in rest
    ]
    scheme = " and ".join(schemes)
    by_block = scheme == "per_block"
    key = "scale_type" if by_block else "scale_format"
    return Form(
        kind=" and ".join(entry.string("dtype") or "none" for entry in entries),
        strategy=scheme,
        dynamic=bool(first.get("is_dynamic")),
        symmetric=_SYMMETRIC.get(str(first.get("symmetric"))),
        group=_block_size(first) if by_block else _size(first),
        scales=first.string(key) or "",
    )


_SYMMETRIC: Final = {"True": True, "False": False}


def _block_size(entry: ConfigFile) -> tuple[int, ...] | None:
    """None where it is no list of numbers, which no class takes."""
    sizes = entry.get("block_size")
    numbers = isinstance(sizes, list) and all(isinstance(size, int) for size in sizes)
    return tuple(sizes) if numbers else None


def _size(entry: ConfigFile) -> int | None:
    if entry.string("qscheme") != "per_group":
        return None
    return entry.optional_integer("group_size", high=1 << 16)


def _nvfp4(group: Group) -> Format:
    return Nvfp4("quark_nvfp4", 16, "weight", "weight_scale_2", "input_scale_2", False)


def _block(group: Group) -> Format:
    return Fp8Block((128, 128), scale="weight_scale", refines=False, biases="float32")


def _float8(group: Group) -> Format:
    return Scaled(
        f"quark_fp8_{group.weights.strategy.removeprefix('per_')}",
        "float8_e4m3fn",
        by_row=group.weights.strategy == "per_channel",
        static=group.static,
        column=False,
        joined=True,
        biases="float32",
    )


def _experts8(group: Group) -> Format:
    return _block(group) if group.weights.strategy == "per_block" else _float8(group)


def _int8(group: Group) -> Format:
    return Scaled(
        f"quark_int8_{group.weights.strategy.removeprefix('per_')}",
        "int8",
        by_row=group.weights.strategy == "per_channel",
        static=group.static,
        once=True,
        shifted=group.inputs is not None and not group.inputs.symmetric,
        biases="float32",
    )


def _int4(group: Group) -> Format:
    """Source: vLLM 0.32, quark/utils.py, `parse_w4a16_int4_weight_config`."""
    if not isinstance(group.stated.get("symmetric"), bool):
        group.stated.fail("symmetric", "is neither true nor false, and vLLM 0.32 asks for it")
    return Nibbles(group.stated.integer("group_size", high=1 << 16))


def _microscaled(group: Group) -> Format:
    """Source: vLLM 0.32, quark_moe.py, `QuarkOCP_MX_MoEMethod`, for what is rounded up."""
    rounding: Rounding = "none"
    if group.weights.kind == "fp4":
        if group.inputs is None:
            rounding = "up"
        elif group.inputs.kind in ("fp4", "fp8_e4m3"):
            rounding = "by device"
    bits = _MICROSCALED[group.weights.kind]
    return Microscaled(
        f"quark_mxfp{bits}",
        bits,
        low_bit=group.inputs is not None,
        biases="float32",
        static=group.static,
        rounding=rounding,
    )


_MADE: Final[Mapping[str, Callable[[Group], Format]]] = {
    "QuarkNVFP4": _nvfp4,
    "QuarkW8A8Fp8PerBlock": _block,
    "QuarkW8A8Fp8": _float8,
    "QuarkW8A8Int8": _int8,
    "QuarkW4A16Int4": _int4,
    "QuarkW4A8_MXFP4_FP8": _microscaled,
    "QuarkOCP_MX": _microscaled,
    "QuarkNvfp4MoEMethod": _nvfp4,
    "QuarkW8A8Fp8MoEMethod": _experts8,
    "QuarkW8A8Int8MoEMethod": _int8,
    "QuarkW4A16Int4MoEMethod": _int4,
    "QuarkOCP_MX_MoEMethod": _microscaled,
}
"""Class of vLLM's that the planner reads -> its tensors."""
