"""Biased experts, ignored ones, and those that vLLM has no class for, beside its own classes.

What vLLM refuses of them is refused.
"""

from dataclasses import replace

import pytest

from tests.vllm.truth.formats.test_truth_heads import HEADS, ONE, PLAIN, _with
from tests.vllm.truth.test_truth_mixed import BY_BLOCK, FP8, _modelopt, _of_quark, _quark
from tests.vllm.truth.test_truth_quantized import EXPERTS, TOKENS, _compressed, _tensors
from truth.compare import Case, Truth, names

WIDE = {"intermediate_size": 1024, "moe_intermediate_size": 1024, "hidden_size": 512}
ALONE = _tensors(8, "channel")
INT8 = _tensors(8, "channel", "int")
STATIC = {"dtype": "int8", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
BY_32 = _tensors(4, "group", group_size=32)
BY_16 = _tensors(4, "tensor_group", group_size=16)
MX8 = _tensors(8, "group", group_size=32, scale_dtype="torch.uint8")
MX4 = {"qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
BIASED: dict[str, object] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-blocks": {"quant_method": "fp8", "activation_scheme": "dynamic"}
    | {"weight_block_size": [128, 128]},
    "modelopt-mxfp8": _modelopt("MXFP8"),
    "modelopt-nvfp4": _modelopt("NVFP4"),
    "ct-fp8-channel": HEADS["ct"],
    "ct-fp8-tensor": _compressed("float-quantized", _tensors(8, "tensor"), _tensors(8, "tensor")),
    "ct-fp8-block": _compressed(
        "float-quantized",
        _tensors(8, "block", block_structure=[128, 128]),
        _tensors(8, "group", dynamic=True, group_size=128),
    ),
    "ct-int8": _compressed("int-quantized", INT8, TOKENS | {"type": "int"}),
    "ct-int4": _compressed("pack-quantized", _tensors(4, "group", "int", group_size=32)),
    "ct-mxfp4": _compressed("mxfp4-pack-quantized", BY_32),
    "ct-mxfp8": _compressed("mxfp8-quantized", MX8, MX8 | {"dynamic": True}),
    "ct-nvfp4": _compressed("nvfp4-pack-quantized", BY_16, BY_16 | {"dynamic": "local"}),
    "quark-fp8": _quark(_of_quark("fp8_e4m3", "per_tensor", FP8)),
    "quark-mxfp4": _quark(
        _of_quark("fp4", "per_group", MX4 | {"dtype": "fp4", "is_dynamic": True}, **MX4)
    ),
    "quark-fp8-blocks": _quark(BY_BLOCK),
    "quark-int8": _quark(_of_quark("int8", "per_tensor", STATIC)),
    "quark-int4": _quark(_of_quark("int4", "per_group", None, group_size=128, symmetric=True)),
}

FIRST = "model.layers.1.mlp.experts.0"
IGNORED = {
    "minimax-m2": [f"{FIRST}.w{i}" for i in (1, 2, 3)],
    # MiniMax's class does not know them by these names.
    "minimax-m2 others": [f"{FIRST}.{part}_proj" for part in ("gate", "up", "down")],
    "mixtral": [f"{FIRST.replace('mlp', 'block_sparse_moe')}.w{i}" for i in (1, 2, 3)],
    "qwen3-moe": [f"{FIRST}.{part}_proj" for part in ("gate", "up", "down")],
    "gpt-oss": [rf"re:.*\.1\.mlp\.experts\.0\.{part}_proj" for part in ("gate", "up", "down")],
}
SEVERAL = "All MoE projections need to have same quantization scheme"
PACKED_ONLY = "For Fused MoE layers, only format: pack-quantized"
PAIRS = "AssertionError: "  # of `CompressedTensorsW8A8Fp8MoEMethod`, without a word
NO_INPUTS = "AttributeError: 'NoneType' object has no attribute 'num_bits'"
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "fp8 rows alone": (_compressed("float-quantized", ALONE), PACKED_ONLY),
    "fp8 tensors alone": (_compressed("float-quantized", _tensors(8, "tensor")), NO_INPUTS),
    "fp8 tensors and tokens": (
        _compressed("float-quantized", _tensors(8, "tensor"), TOKENS),
        PAIRS,
    ),
    "fp8 rows and tensors": (
        _compressed("float-quantized", ALONE, _tensors(8, "tensor")),
        PAIRS,
    ),
    "int8 tensors": (
        _compressed("int-quantized", _tensors(8, "tensor", "int"), TOKENS | {"type": "int"}),
        "For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization",
    ),
    "nvfp4 and fp8": (
        _compressed("nvfp4-pack-quantized", BY_16, TOKENS),
        "For NVFP4 weights, input quantization must also be NVFP4",
    ),
    "mxfp8 of no exponents": (
        _compressed("mxfp8-quantized", _tensors(8, "group", group_size=32), TOKENS),
        "No compressed-tensors compatible scheme was found",
    ),
    "half an expert": (
        _compressed(
            "float-quantized", ALONE, TOKENS, ignore=[f"{FIRST}.gate_proj", f"{FIRST}.up_proj"]
        ),
        SEVERAL,
    ),
}

OSS = PLAIN["gpt-oss"]
ODD = {"intermediate_size": 672, "moe_intermediate_size": 672, "hidden_size": 320}
"""What no kernel of four bits takes: vLLM rounds it up for Marlin's, as the stand-in chooses."""
ROUNDED: dict[str, object] = {
    "mxfp4": {"quant_method": "mxfp4"},
    "quark-mxfp4": _quark(_of_quark("fp4", "per_group", None, **MX4)),
}
CASES = (
    {f"rounded {method}": _with(OSS, stated, **ODD) for method, stated in ROUNDED.items()}
    | {f"biased {method}": _with(OSS, stated, **WIDE) for method, stated in BIASED.items()}
    | {
        f"ignored {name}": _with(
            PLAIN[name.partition(" ")[0]],
            _compressed("float-quantized", ALONE, TOKENS, ignore=["lm_head", *ignored]),
        )
        for name, ignored in IGNORED.items()
    }
    | {
        f"refused {kind}": Case(
            "Qwen--Qwen3-235B-A22B",
            EXPERTS | {"quantization_config": stated},
            ONE,
            refused=said,
        )
        for kind, (stated, said) in REFUSED.items()
    }
    | {
        # vLLM renames the last of the three, and finds two of them.
        "refused gpt-oss by name": replace(
            _with(OSS, _compressed("float-quantized", ALONE, TOKENS, ignore=IGNORED["qwen3-moe"])),
            refused=SEVERAL,
        ),
    }
)


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
