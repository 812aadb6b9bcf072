"""Quantised experts, embeddings and layouts: what has no class is refused, and the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pure.quantization.test_quantization import (
    BY_32,
    FLOATS,
    FP8,
    GPTQ,
    INT8,
    ONE,
    SCHEME,
    TOKENS,
    compressed,
    write,
)
from vllm_layershard.errors import LayerShardError, ModelError, PlanError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout


@pytest.mark.parametrize(
    ("quantization", "tp", "message"),
    [
        (compressed("pack-quantized", INT8 | {"strategy": "group", "group_size": 96}), 1, "group"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 2048},
            8,
            "a multiple of the group of 2048",
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": -1},
            2,
            "no awq with one scale a row whose columns 2 ranks share",
        ),
        (GPTQ | {"group_size": 2048}, 8, "are not a multiple of the group of 2048"),
        (
            compressed("float-quantized", FP8 | {"strategy": "block", "block_structure": [96, 96]}),
            8,
            "fp8 block",
        ),
    ],
)
def test_layouts_that_split_a_group_are_refused(
    quantization: Any, tp: int, message: str, tmp_path: Path
) -> None:
    model = read_model(write(tmp_path, quantization))
    with pytest.raises(LayerShardError) as error:
        model.linears(Deployment(ParallelLayout(tp=tp)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("quantization", "dtype", "per_token"),
    [
        (None, "bfloat16", 262_144),
        (
            compressed("int-quantized", INT8, TOKENS, kv_cache_scheme=SCHEME),
            "fp8",
            131_072,
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
            "fp8_e4m3",
            131_072,
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "bfloat16", 262_144),
    ],
)
def test_a_checkpoint_chooses_the_cache_where_nobody_else_does(
    quantization: Any, dtype: str, per_token: int, tmp_path: Path
) -> None:
    model = read_model(write(tmp_path, quantization))
    assert model.cache_dtype("auto") == dtype
    assert model.kv_bytes_per_token("auto", range(64), ONE) == per_token
    assert model.cache_dtype("bfloat16") == "bfloat16"
    assert model.kv_bytes_per_token("bfloat16", range(64), ONE) == 262_144


ROUTED_NEVER = {
    "fp8 rows alone": (
        compressed("float-quantized", FP8),
        "routed experts of float8 by channel with these activations (unquantised), since weights "
        "alone are integers of the format pack-quantized; it takes these: dynamic float4 or",
    ),
    "fp8 tensors alone": (
        compressed("float-quantized", SCHEME),
        "routed experts of float8 by tensor with these activations (unquantised); it takes these:",
    ),
    "fp8 blocks alone": (
        compressed("float-quantized", FP8 | {"strategy": "block", "block_structure": [128, 128]}),
        "routed experts of float8 by block with these activations (unquantised); it takes these:",
    ),
    "fp8 tensors with tokens": (
        compressed("float-quantized", SCHEME, FLOATS),
        "routed experts of float8 by tensor with these activations (dynamic float8 by token)",
    ),
    "fp8 rows with tensors": (
        compressed("float-quantized", FP8, SCHEME),
        "routed experts of float8 by channel with these activations (float8 by tensor)",
    ),
    "int8 tensors": (
        compressed("int-quantized", INT8 | {"strategy": "tensor"}, TOKENS),
        "no class for routed experts of int8 by tensor with these activations",
    ),
    "mxfp4 with fp8": (
        compressed("mxfp4-pack-quantized", BY_32 | {"num_bits": 4}, FLOATS),
        "CompressedTensorsW4A8Mxfp4MoEMethod, and the planner does not read it yet",
    ),
}


@pytest.mark.parametrize("case", ROUTED_NEVER)
def test_a_scheme_without_routed_experts_is_for_linears_alone(case: str, tmp_path: Path) -> None:
    quantization, message = ROUTED_NEVER[case]
    assert read_model(write(tmp_path, quantization)).linears(ONE)
    with pytest.raises(ModelError) as error:
        read_model(write(tmp_path, quantization, "Qwen--Qwen3-235B-A22B")).linears(ONE)
    assert message in str(error.value)


QWEIGHTS: dict[str, dict[str, Any]] = {
    "gptq's": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "awq's": {"quant_method": "awq", "bits": 4, "group_size": 32},
    "auto-round's gptq's": {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True},
}


@pytest.mark.parametrize("case", QWEIGHTS)
def test_experts_of_gpt_oss_that_vllm_does_not_load_are_refused(case: str, tmp_path: Path) -> None:
    """Source: vLLM 0.32, models/gpt_oss.py, `_load_weights_other`: no `qweight` of an expert."""
    model = read_model(write(tmp_path, QWEIGHTS[case], "openai--gpt-oss-120b"))
    method = case.rpartition(" ")[2]
    said = f"model.layers.0.mlp.experts: routed experts with biases in {method} packing: vLLM 0.32 "
    with pytest.raises(ModelError, match=said):
        model.weight_bytes(ONE, rank=0)


def test_experts_of_gpt_oss_that_gptq_leaves_alone_are_planned(tmp_path: Path) -> None:
    stated = QWEIGHTS["gptq's"] | {"dynamic": {"-:.*experts.*": {}}}
    model = read_model(write(tmp_path, stated, "openai--gpt-oss-120b"))
    assert model.weight_bytes(ONE, rank=0).experts > 200 << 30


NAMED = [f"model.layers.1.mlp.experts.0.{part}_proj" for part in ("gate", "up", "down")]


def test_experts_of_gpt_oss_are_found_by_the_names_that_vllm_makes_of_them(tmp_path: Path) -> None:
    # `down_proj` at the end of a name becomes `w2_weight`, and is found no more.
    stated = compressed("float-quantized", FP8, FLOATS, ignore=NAMED)
    with pytest.raises(ModelError, match="names some but not all of its parts"):
        read_model(write(tmp_path, stated, "openai--gpt-oss-120b")).weight_bytes(ONE, rank=0)


@pytest.mark.parametrize("target", ["Embedding", "VocabParallelEmbedding", "Parallel"])
def test_targets_that_name_the_class_of_the_embedding_are_refused(
    target: str, tmp_path: Path
) -> None:
    stated = compressed("float-quantized", FP8, FLOATS)
    stated["config_groups"]["0"]["targets"] = ["Linear", target]
    with pytest.raises(ModelError, match="quantised embeddings are not supported"):
        read_model(write(tmp_path, stated))


def test_static_int8_is_for_linears_alone(tmp_path: Path) -> None:
    """vLLM 0.32 raises where it would be asked for such experts."""
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    static = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    section = compressed("int-quantized", weights, static)
    (linear, *_) = read_model(write(tmp_path, section)).linears(Deployment(ParallelLayout()))
    scales = [(t.name, t.shape, t.dtype) for t in linear.tensors[1:]]
    assert scales == [
        ("weight_scale", (10240, 1), "float32"),
        ("input_scale", (1,), "float32"),
    ]
    model = read_model(write(tmp_path, section, "Qwen--Qwen3-235B-A22B"))
    with pytest.raises(ModelError, match="no class for routed experts of int8 by channel with"):
        model.weight_bytes(Deployment(ParallelLayout()), rank=0)
    token = static | {"strategy": "token"}
    with pytest.raises(
        ModelError, match="strategy: compressed-tensors has no static scales of tokens"
    ):
        read_model(write(tmp_path, compressed("int-quantized", weights, token)))


MX4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
PAIRS = {
    "fp4": MX4 | {"is_dynamic": True},
    "fp8": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
    | {"is_dynamic": False, "symmetric": True},
}


@pytest.mark.parametrize("inputs", PAIRS)
@pytest.mark.parametrize("sizes", [(2880, 2880), (3072, 640), (640, 3072)])
def test_experts_that_a_kernel_of_some_devices_rounds_up_are_refused(
    inputs: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    """AITER's kernels round both sizes up to 256; elsewhere vLLM emulates and rounds to 32."""
    hidden, inner = sizes
    group = {"weight": MX4, "input_tensors": PAIRS[inputs]}
    section = {"quant_method": "quark", "export": {}, "global_quant_config": group}
    model = "Qwen--Qwen3-235B-A22B"
    odd = write(tmp_path, section, model, hidden_size=hidden, moe_intermediate_size=inner)
    with pytest.raises(PlanError, match="rounds quark_mxfp4 up on some of AMD's devices only"):
        read_model(odd).weight_bytes(ONE, 0)
    even = write(tmp_path, section, model, hidden_size=3072, moe_intermediate_size=768)
    assert read_model(even).weight_bytes(ONE, 0).experts > 0
