"""Pairs: weights with activations of each form, as sections that vLLM and the planner are asked.

Linears are asked of a dense model; routed experts of a model whose other linears are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from truth.asking import answers_of
from truth.compare import Case
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

Section = Mapping[str, Any]

SMALL: Final = {
    "num_hidden_layers": 1,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 1000,
}
MODELS: Final = {
    "linears": ("Qwen--Qwen3-32B", SMALL),
    "experts": (
        "Qwen--Qwen3-235B-A22B",
        SMALL | {"moe_intermediate_size": 1024, "num_experts": 16, "num_experts_per_tok": 2},
    ),
}
NOT_EXPERTS: Final = ("lm_head", "re:.*self_attn.*", "re:.*mlp.gate$")
IGNORED: Final = {"linears": ("lm_head",), "experts": NOT_EXPERTS}
READ_LATER: Final = "the planner does not read it yet"


def _form(bits: int, kind: str, strategy: str, **more: object) -> dict[str, object]:
    form = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True}
    return form | {"dynamic": False} | more


_BY_128: Final = {"group_size": 128}
_BY_32: Final = {"group_size": 32}
_BY_16: Final = {"group_size": 16}
_BYTES: Final = {"scale_dtype": "torch.uint8"}

COMPRESSED_WEIGHTS: Final[Mapping[str, tuple[str, dict[str, object]]]] = {
    "fp8-channel": ("float-quantized", _form(8, "float", "channel")),
    "fp8-tensor": ("float-quantized", _form(8, "float", "tensor")),
    "fp8-block": ("float-quantized", _form(8, "float", "block", block_structure=[128, 128])),
    "fp8-block64": ("float-quantized", _form(8, "float", "block", block_structure=[64, 128])),
    "fp8-group": ("float-quantized", _form(8, "float", "group", **_BY_32)),
    "fp8-naive": ("naive-quantized", _form(8, "float", "channel")),
    "fp8-shifted": ("float-quantized", _form(8, "float", "channel", symmetric=False)),
    "fp8-dynamic": ("float-quantized", _form(8, "float", "tensor", dynamic=True)),
    "int8-channel": ("int-quantized", _form(8, "int", "channel")),
    "int8-tensor": ("int-quantized", _form(8, "int", "tensor")),
    "int8-group": ("int-quantized", _form(8, "int", "group", **_BY_128)),
    "int8-shifted": ("int-quantized", _form(8, "int", "channel", symmetric=False)),
    "int4-unpacked": ("int-quantized", _form(4, "int", "group", **_BY_128)),
    "int8-packed": ("pack-quantized", _form(8, "int", "channel")),
    "int8-packed-group": ("pack-quantized", _form(8, "int", "group", **_BY_128)),
    "int8-packed-zeros": ("pack-quantized", _form(8, "int", "channel", symmetric=False)),
    "int4-128": ("pack-quantized", _form(4, "int", "group", **_BY_128)),
    "int4-32": ("pack-quantized", _form(4, "int", "group", **_BY_32)),
    "int4-zeros": ("pack-quantized", _form(4, "int", "group", symmetric=False, **_BY_128)),
    "int4-channel": ("pack-quantized", _form(4, "int", "channel")),
    "int4-tensor": ("pack-quantized", _form(4, "int", "tensor")),
    "int2-group": ("pack-quantized", _form(2, "int", "group", **_BY_32)),
    "nvfp4": ("nvfp4-pack-quantized", _form(4, "float", "tensor_group", **_BY_16)),
    "nvfp4-32": ("nvfp4-pack-quantized", _form(4, "float", "tensor_group", **_BY_32)),
    "mxfp4": ("mxfp4-pack-quantized", _form(4, "float", "group", **_BY_32, **_BYTES)),
    "mxfp8": ("mxfp8-quantized", _form(8, "float", "group", **_BY_32, **_BYTES)),
    "plain-fp8": ("dense", _form(8, "float", "channel")),
}
COMPRESSED_INPUTS: Final[Mapping[str, dict[str, object] | None]] = {
    "none": None,
    "fp8-token": _form(8, "float", "token", dynamic=True),
    "fp8-token-shifted": _form(8, "float", "token", dynamic=True, symmetric=False),
    "fp8-token-static": _form(8, "float", "token"),
    "fp8-tensor": _form(8, "float", "tensor"),
    "fp8-tensor-shifted": _form(8, "float", "tensor", symmetric=False),
    "fp8-tensor-dynamic": _form(8, "float", "tensor", dynamic=True),
    "fp8-channel": _form(8, "float", "channel"),
    "fp8-group": _form(8, "float", "group", dynamic=True, **_BY_128),
    "fp8-group-static": _form(8, "float", "group", **_BY_128),
    "mxfp8": _form(8, "float", "group", dynamic=True, **_BY_32, **_BYTES),
    "int8-token": _form(8, "int", "token", dynamic=True),
    "int8-token-shifted": _form(8, "int", "token", dynamic=True, symmetric=False),
    "int8-tensor": _form(8, "int", "tensor"),
    "int8-tensor-shifted": _form(8, "int", "tensor", symmetric=False),
    "int8-tensor-dynamic": _form(8, "int", "tensor", dynamic=True),
    "int8-group": _form(8, "int", "group", dynamic=True, **_BY_128),
    "int8-unstated": {"num_bits": 8, "type": "int", "dynamic": True},
    "int4-token": _form(4, "int", "token", dynamic=True),
    "nvfp4": _form(4, "float", "tensor_group", dynamic="local", **_BY_16),
    "nvfp4-static": _form(4, "float", "tensor_group", **_BY_16),
    "mxfp4": _form(4, "float", "group", dynamic=True, **_BY_32, **_BYTES),
}


def compressed(weights: str, inputs: str, what: str) -> Section:
    """A section of compressed-tensors with this pair."""
    form, stated = COMPRESSED_WEIGHTS[weights]
    group = {"targets": ["Linear"], "weights": stated}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": list(IGNORED[what]),
        "config_groups": {"group_0": group | {"input_activations": COMPRESSED_INPUTS[inputs]}},
    }


def _scale(dtype: str, scheme: str, **more: object) -> dict[str, object]:
    scale = {"dtype": dtype, "qscheme": scheme, "is_dynamic": False, "symmetric": True}
    return scale | more


_MX: Final = {"group_size": 32, "scale_format": "e8m0", "ch_axis": -1}
_WIDE: Final = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
_ON: Final = {"is_dynamic": True}
_FP8: Final = "fp8_e4m3"
_BLOCKS: Final = {"block_size": [128, 128]}

QUARK_WEIGHTS: Final[Mapping[str, object]] = {
    "fp8-tensor": _scale(_FP8, "per_tensor"),
    "fp8-tensor-list": [_scale(_FP8, "per_tensor")],
    "fp8-tensor-dynamic": _scale(_FP8, "per_tensor", **_ON),
    "fp8-channel": _scale(_FP8, "per_channel", ch_axis=0),
    "fp8-block": _scale(_FP8, "per_block", **_BLOCKS),
    "fp8-block-e8m0": _scale(_FP8, "per_block", scale_type="float8_e8m0fnu", **_BLOCKS),
    "fp8-block64": _scale(_FP8, "per_block", block_size=[64, 64]),
    "fp8-block-shifted": _scale(_FP8, "per_block", **_BLOCKS | {"symmetric": False}),
    "fp8-group": _scale(_FP8, "per_group", group_size=128),
    "mxfp4": _scale("fp4", "per_group", **_MX),
    "mxfp4-dynamic": _scale("fp4", "per_group", **_MX, **_ON),
    "mxfp4-float": _scale("fp4", "per_group", group_size=32, scale_format="float32"),
    "mxfp6-e3m2": _scale("fp6_e3m2", "per_group", **_MX),
    "mxfp6-e2m3": _scale("fp6_e2m3", "per_group", **_MX),
    "mxfp8": _scale(_FP8, "per_group", **_MX),
    "mxfp8-block": _scale(_FP8, "per_block", scale_type="float8_e8m0fnu", block_size=[32, 32]),
    "int8-tensor": _scale("int8", "per_tensor"),
    "int8-channel": _scale("int8", "per_channel"),
    "int8-shifted": _scale("int8", "per_tensor", symmetric=False),
    "int8-dynamic": _scale("int8", "per_tensor", **_ON),
    "int4-group": _scale("int4", "per_group", group_size=128),
    "uint4-group": _scale("uint4", "per_group", group_size=32, symmetric=False),
    "int4-unstated": {"dtype": "int4", "qscheme": "per_group", "group_size": 128},
    "nvfp4": [_scale("fp4", "per_group", group_size=16), _WIDE],
    "nvfp4-32": [_scale("fp4", "per_group", group_size=32), _WIDE],
    "fp8-int4": [_WIDE, _scale("int4", "per_channel", ch_axis=0)],
}
QUARK_INPUTS: Final[Mapping[str, object]] = {
    "none": None,
    "fp8-tensor": _scale(_FP8, "per_tensor"),
    "fp8-tensor-unstated": _WIDE,
    "fp8-tensor-dynamic": _scale(_FP8, "per_tensor", **_ON),
    "fp8-channel": _scale(_FP8, "per_channel"),
    "fp8-channel-dynamic": _scale(_FP8, "per_channel", **_ON),
    "fp8-group": _scale(_FP8, "per_group", group_size=128, **_ON),
    "fp8-group-shifted": _scale(_FP8, "per_group", group_size=128, **_ON | {"symmetric": False}),
    "mxfp4": _scale("fp4", "per_group", **_MX, **_ON),
    "mxfp4-static": _scale("fp4", "per_group", **_MX),
    "mxfp6-e3m2": _scale("fp6_e3m2", "per_group", **_MX, **_ON),
    "mxfp6-e2m3": _scale("fp6_e2m3", "per_group", **_MX, **_ON),
    "mxfp8": _scale(_FP8, "per_group", **_MX, **_ON),
    "int8-tensor": _scale("int8", "per_tensor"),
    "int8-tensor-shifted": _scale("int8", "per_tensor", symmetric=False),
    "int8-tensor-dynamic": _scale("int8", "per_tensor", **_ON),
    "int8-channel-dynamic": _scale("int8", "per_channel", **_ON),
    "nvfp4": [_scale("fp4", "per_group", group_size=16, **_ON), _WIDE],
    "nvfp4-static": [_scale("fp4", "per_group", group_size=16), _WIDE],
}


def quark(weights: str, inputs: str, what: str) -> Section:
    """A section of Quark with this pair."""
    stated = {"weight": QUARK_WEIGHTS[weights], "input_tensors": QUARK_INPUTS[inputs]}
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "exclude": list(IGNORED[what]),
        "global_quant_config": stated | {"output_tensors": None, "bias": None},
        "layer_quant_config": {},
        "layer_type_quant_config": {},
    }


class Pair(NamedTuple):
    """`what`: linears or experts."""

    what: str
    section: Section

    def case(self) -> Case:
        """One model of one rank."""
        config, sizes = MODELS[self.what]
        changes = sizes | {"quantization_config": self.section}
        return Case(config, changes, layouts=((1, 1, False),), refused="either")


_ROUNDED: Final = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}
_MXFP: Final = _ROUNDED | {"data_type": "mx_fp", "group_size": 32}
_FPBLOCK: Final = _ROUNDED | {"data_type": "fp", "bits": 8, "group_size": [128, 128]}
_AWQ: Final = {"quant_method": "awq", "bits": 4, "zero_point": True}

ROUNDED: Final[Mapping[str, Section]] = {
    "int": _ROUNDED,
    "int, a null packing": _ROUNDED | {"packing_format": None},
    **{
        f"int {key} {value}": _ROUNDED | {key: value}
        for key in ("backend", "vllm_backend")
        for value in ("auto", "gptq", "awq:marlin", "marlin", "auto_round:gptq:exllamav2", "", None)
    },
    "int awq": _ROUNDED | {"packing_format": "auto_round:auto_awq"},
    "int awq rows": _ROUNDED | {"packing_format": "auto_round:auto_awq", "group_size": -1},
    "int fp8 packing": _ROUNDED | {"packing_format": "auto_round:fp8"},
    **{
        f"{name} {key} {value}": section | {key: value}
        for name, section in (("mxfp4", _MXFP), ("mxfp8", _MXFP | {"bits": 8}), ("fp8", _FPBLOCK))
        for key, values in {
            "data": (None,),
            "backend": ("auto", "marlin"),
            "packing_format": ("auto_round:llm_compressor", "auto_round:fp8", "auto_round:x", None),
            "act_bits": (4, 8, 16),
            "act_group_size": (32, 128),
            "act_data_type": ("fp", "mx_fp", "int"),
            "act_sym": (True, False),
            "act_dynamic": (True, False),
            "activation_scheme": ("dynamic", "static", None),
            "fmt": ("e4m3", "e5m2"),
        }.items()
        for value in values
    },
    "awq": _AWQ | {"group_size": 128},
    "awq rows": _AWQ | {"group_size": -1},
    "awq of nothing": _AWQ | {"group_size": 0},
}
"""Of auto-round and awq, whose activations are not stated beside each weight."""


METHODS: Final = {
    "compressed-tensors": (compressed, COMPRESSED_WEIGHTS, COMPRESSED_INPUTS),
    "quark": (quark, QUARK_WEIGHTS, QUARK_INPUTS),
}


def pairs_of(inputs: Collection[str] | None = None) -> dict[str, Pair]:
    """Of both methods all weights, with all activations or with these."""
    return {
        f"{method} {what}: {stated} with {activations}": Pair(
            what, section(stated, activations, what)
        )
        for method, (section, weights, known) in METHODS.items()
        for what in MODELS
        for stated in weights
        for activations in known
        if inputs is None or activations in inputs
    }


def stated_pairs() -> dict[str, Pair]:
    """Of auto-round and awq all sections, of linears and of a model with experts."""
    return {
        f"{what}: {name}": Pair(what, section)
        for what in MODELS
        for name, section in ROUNDED.items()
    }


class Answers:
    """What vLLM and the planner say of all pairs of one file."""

    def __init__(self, pairs: Mapping[str, Pair], root: Path) -> None:
        self._directories = {
            name: pair.case().write(root / str(index))
            for index, (name, pair) in enumerate(pairs.items())
        }
        asked = [
            {"name": name, "directory": str(directory), "tp": 1, "dp": 1, "ep": False}
            | {"drafted": 0, "refused": "either"}
            for name, directory in self._directories.items()
        ]
        script = Path(__file__).with_name("vllm_inventory.py")
        self._vllm: dict[str, Any] = answers_of(script, asked, timeout_s=500)

    def check(self, name: str) -> None:
        """Both refuse, or both say the same bytes, or the planner names the class of vLLM's."""
        ours, theirs = self._planned(name), self._vllm[name]
        if "refused" in theirs:
            assert isinstance(ours, str), theirs["refused"]
            assert READ_LATER not in ours
        elif isinstance(ours, str):
            assert READ_LATER in ours
            assert any(scheme in ours for scheme in theirs["schemes"])
        else:
            assert ours == theirs["total_bytes"]

    def schemes(self) -> set[str]:
        """Every class that vLLM chose."""
        return {one for found in self._vllm.values() for one in found.get("schemes", ())}

    def _planned(self, name: str) -> int | str:
        try:
            model = read_model(str(self._directories[name]))
            deployment = Deployment(ParallelLayout())
            model.linears(deployment)
            held = model.weight_bytes(deployment, rank=0)
        except LayerShardError as error:
            return str(error)
        return held.total - held.derived
