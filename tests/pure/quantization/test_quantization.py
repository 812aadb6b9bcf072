"""Quantisation: what is refused and how it is said; Ascend's description; the cache's dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_layershard.errors import LayerShardError, ModelError, PlanError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.beside import DESCRIPTION, MAX_DESCRIPTION_BYTES
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

ONE = Deployment(ParallelLayout())
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
SCHEME = FP8 | {"strategy": "tensor"}
FLOATS = FP8 | {"strategy": "token", "dynamic": True}
FOURS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
BY_32 = FP8 | {"strategy": "group", "group_size": 32}
QUARK_TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
QUARK_FP8 = {"weight": QUARK_TENSOR, "input_tensors": QUARK_TENSOR}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def compressed(form: str, weights: Any, inputs: Any = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"0": group},
    } | more


def write(directory: Path, quantization: Any, model: str = "Qwen--Qwen3-32B", **more: Any) -> str:
    config = json.loads((_BUNDLED / f"{model}.json").read_text())
    config |= {"quantization_config": quantization, **more}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


REFUSED = {
    "no method": ({}, "quant_method: is missing, so no source states how the weights are"),
    "unknown": (
        {"quant_method": "bitsandbytes"},
        'quant_method: "bitsandbytes" is not supported: vLLM 0.32 has no class for it',
    ),
    "not read yet": (
        {"quant_method": "TorchAO"},
        '"TorchAO" is not supported: vLLM 0.32 has a class for it, and the planner does not',
    ),
    "mxfp4 of a dense model": ({"quant_method": "mxfp4"}, "every linear, every routed expert and"),
    "inc in three bits": (
        {"quant_method": "inc", "bits": 3, "group_size": 128},
        "bits: 3: vLLM 0.32 has a class for it (humming), and the planner does not read it yet",
    ),
    "inc, not symmetric": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False},
        "sym: vLLM 0.32 has a class for gptq's packing with symmetric 4 and 8",
    ),
    "inc on a backend that vLLM does not know": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128}
        | {"backend": "auto_round:gptq:exllamav2"},
        'backend: "auto_round:gptq:exllamav2": vLLM 0.32 ',
    ),
    "inc with other activations": (
        {"quant_method": "auto-round", "bits": 8, "group_size": 32, "data_type": "mx_fp"}
        | {"act_dynamic": False},
        "act_dynamic: false: vLLM 0.32 takes true here",
    ),
    "inc of another type": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 16, "data_type": "nv_fp"},
        'data_type: "nv_fp": vLLM 0.32 has no class for it',
    ),
    "inc with half a fused linear": (
        {"quant_method": "inc", "bits": 4, "group_size": 128}
        | {"extra_config": {"model.layers.0.self_attn.q_proj": {"bits": 16}}},
        "qkv_proj: extra_config states several formats for its parts (q_proj, k_proj, v_proj)",
    ),
    "inc with a broken pattern": (
        {"quant_method": "inc", "bits": 4, "group_size": 128, "extra_config": {"(": {"bits": 8}}},
        "extra_config: (: the pattern",
    ),
    "quark with asymmetric int8": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {
                "weight": {"dtype": "int8", "qscheme": "per_tensor", "symmetric": False},
                "input_tensors": {"dtype": "int8", "qscheme": "per_tensor"},
            },
        },
        "weight: asymmetric int8 by per_tensor: vLLM 0.32 has no class for such weights; it has ",
    ),
    "fp8 without a scheme": ({"quant_method": "fp8"}, "activation_scheme: null is neither"),
    "fp8 stored as mxfp4": ({"quant_method": "fp8", "store_dtype": "mxfp4"}, "store_dtype"),
    "fp8 block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128]},
        "weight_block_size: is not a list of two whole numbers",
    ),
    "static blocks": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]},
        "activation_scheme: fp8 blocks are supported with 'dynamic' only",
    ),
    "awq in eight bits": ({"quant_method": "awq", "bits": 8}, "bits: vLLM supports awq with 4"),
    "awq group": ({"quant_method": "awq", "bits": 4}, "group_size: is missing"),
    "gptq, not symmetric": (GPTQ | {"sym": False}, "sym: vLLM supports gptq with symmetric"),
    "gptq with half a fused linear": (
        GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"]]},
        "qkv_proj: modules_in_block_to_quantize names some but not all of its parts",
    ),
    "gptq with a rule in three bits": (
        GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 3}}},
        "dynamic: +:.*down_proj: bits: 3 is not 4 or 8",
    ),
    "gptq with a broken rule": (GPTQ | {"dynamic": {"-:(": {}}}, "dynamic: -:(: the pattern"),
    "gptq with modules of another kind": (
        GPTQ | {"modules_in_block_to_quantize": "q_proj"},
        'modules_in_block_to_quantize: "q_proj" is not a list of strings',
    ),
    "gptq with an order": (GPTQ | {"desc_act": True}, "desc_act: vLLM no longer supports"),
    "gptq in three bits": (GPTQ | {"bits": 3}, "bits: 3 is not 4 or 8"),
    "modelopt": (
        {"quant_method": "modelopt"},
        "quant_algo: null is not supported: vLLM 0.32 has no",
    ),
    "modelopt mixed": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        "quantized_layers: is missing, and MIXED_PRECISION states each layer's there",
    ),
    "quark without its export": ({"quant_method": "quark"}, "export: is missing, and vLLM 0.32"),
    "quark without a format": (
        {"quant_method": "quark", "export": {}},
        "global_quant_config: is missing",
    ),
    "quark with rules without end": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": QUARK_FP8,
            "layer_quant_config": dict.fromkeys(map("*{}".format, range(300)), QUARK_FP8),
        },
        "layer_quant_config: has 300 rules, 300 of them with a wildcard; at most 4,096 are read",
    ),
    "quark in six bits": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {"weight": {"dtype": "fp6_e2m3", "qscheme": "per_group"}},
        },
        "weight: fp6_e2m3 by per_group: vLLM 0.32 has no class for such weights; it has for ",
    ),
    "quark in several scales": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {"weight": [{"dtype": "fp4"}, {"dtype": "fp8_e4m3"}]},
        },
        "weight: fp4 and fp8_e4m3 by none and none: vLLM 0.32 has no class for such weights",
    ),
    "ascend without its file": ({"quant_method": "ascend"}, "needs quant_model_description.json"),
    "no groups": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        "config_groups: states no linears, so no source states their bytes",
    ),
    "two groups": (
        compressed("int-quantized", INT8) | {"config_groups": {"0": {}, "1": {}}},
        "config_groups: 0: names no targets",
    ),
    "no weights": (compressed("int-quantized", None), "weights: is missing"),
    "static int8": (
        compressed("int-quantized", INT8),
        "input_activations: vLLM 0.32 has no class for linears of int8 by channel with these "
        "activations (unquantised); it takes these: static float8 or int8 by tensor, dynamic",
    ),
    "packed int8 with static activations": (
        compressed("pack-quantized", INT8, TOKENS | {"dynamic": False}),
        "strategy: compressed-tensors has no static scales of tokens",
    ),
    "packed int8 with activations that are shifted": (
        compressed("pack-quantized", INT8, TOKENS | {"symmetric": False}),
        "(dynamic asymmetric int8 by token); it takes these: "
        "dynamic symmetric int8 by token or group, dynamic symmetric int4 by token or group, unq",
    ),
    "fbgemm without its bound": (
        {"quant_method": "fbgemm_fp8", "modules_to_not_convert": []},
        "activation_scale_ub: is missing, and vLLM 0.32 asks for it",
    ),
    "fp8 by group": (
        compressed("float-quantized", FP8 | {"strategy": "group"}),
        "group_size: is for the strategies group and tensor_group, and they need it",
    ),
    "unsigned": (
        compressed("int-quantized", INT8 | {"symmetric": False}, TOKENS),
        "type: asymmetric int8 by channel: vLLM 0.32 has no class for such weights in the format "
        '"int-quantized"; it has for symmetric float4 by tensor_group of 16, ',
    ),
    "nvfp4 with fp8": (
        compressed("nvfp4-pack-quantized", FOURS, TOKENS),
        "int8 by token); it takes these: unquantised, symmetric float4 by tensor_group of 16",
    ),
    "mxfp8 without its exponents": (
        compressed("mxfp8-quantized", BY_32),
        "symmetric float8 by group of 32 with scales in uint8",
    ),
    "packed int4 with fp8 by tensor": (
        compressed(
            "pack-quantized",
            INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128},
            FLOATS | {"strategy": "tensor"},
        ),
        "int4 by group of 128 with these activations (dynamic float8 by tensor); it takes these: "
        "dynamic symmetric float8 by token, dynamic symmetric int8 by token or group, dynamic",
    ),
    "a slow pattern": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:(a+)+b"]),
        'ignore: the pattern "(a+)+b" repeats a group, which is not read',
    ),
    "no pattern": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:["]),
        'ignore: the pattern "[" is not a regular expression',
    ),
    "half a fused linear": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:.*layers.3.self_attn.k_proj"]),
        "model.layers.3.self_attn.qkv_proj: ignore names some but not all of its parts",
    ),
    "names without end": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*"] * 5000},
        "ignore: has 5,000 names; at most 2,048 are read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_key_and_the_reason(case: str, tmp_path: Path) -> None:
    quantization, message = REFUSED[case]
    with pytest.raises(ModelError) as error:
        read_model(write(tmp_path, quantization)).linears(ONE)
    assert message in str(error.value)
    assert "None" not in str(error.value)


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


def described(kinds: dict[str, str]) -> dict[str, str]:
    """The precision of every tensor of a one-layer Qwen3-MoE, as ModelSlim states it."""
    modules = {
        **{f"self_attn.{part}_proj": "W8A8" for part in "qkvo"},
        **{
            f"mlp.experts.{i}.{p}_proj": "W8A8_DYNAMIC"
            for i in range(2)
            for p in ("gate", "up", "down")
        },
        "mlp.gate": "FLOAT",
    } | kinds
    return {f"model.layers.0.{module}.weight": kind for module, kind in modules.items()}


FIRST_EXPERT = tuple(f"mlp.experts.0.{part}_proj" for part in ("gate", "up", "down"))


def ascend(directory: Path, description: bytes) -> str:
    (directory / DESCRIPTION).write_bytes(description)
    sizes = {"num_hidden_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    return write(directory, None, "Qwen--Qwen3-235B-A22B", **sizes)


def test_ascends_w8a8_is_read_from_its_description(tmp_path: Path) -> None:
    model = read_model(ascend(tmp_path, json.dumps({"version": "1.0"} | described({})).encode()))
    assert model.quantization == "ascend_w8a8"
    by_name = {linear.prefix: linear for linear in model.linears(ONE)}
    o_proj = {t.name: t for t in by_name["model.layers.0.self_attn.o_proj"].tensors}
    assert (o_proj["weight"].shape, o_proj["weight"].dtype) == ((4096, 8192), "int8")
    assert o_proj["deq_scale"].dtype == "float32"
    assert o_proj["aclnn_input_offset"].shape == (8192,)
    (gate,) = by_name["model.layers.0.mlp.gate"].tensors
    assert gate.dtype == "bfloat16"
    rows = 2 * 1536 + 4096
    experts = 2 * (3 * 1536 * 4096 + rows * (2 + 2) + 2 * 1536 * 4)
    assert model.weight_bytes(ONE, 0).experts == experts


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            described({"self_attn.o_proj": "W4A8"}),
            "o_proj: quant_model_description.json states W4A8",
        ),
        (
            described({"self_attn.k_proj": "FLOAT"}),
            "qkv_proj: quant_model_description.json states several",
        ),
        (
            {},
            "states no precision for model.layers.0.mlp.experts.0.gate_proj",
        ),
        (
            described(dict.fromkeys(FIRST_EXPERT, "W8A8")),
            "vllm-ascend has no experts with precision W8A8",
        ),
        (
            described({"mlp.experts.0.up_proj": "FLOAT"}),
            "states several precisions for model.layers.0.mlp.experts.0.gate_proj, ",
        ),
    ],
)
def test_descriptions_that_do_not_fit(
    description: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = read_model(ascend(tmp_path, json.dumps(description).encode()))
    with pytest.raises(ModelError) as error:
        model.weight_bytes(ONE, 0)
    assert message in str(error.value)


READS = "vllm-ascend has a class for such {}, and the planner does not read it yet; supported are"
NONE = "vllm-ascend has no class for such {}; supported are FLOAT, W8A8 and W8A8_DYNAMIC"


@pytest.mark.parametrize(
    ("module", "kind", "said"),
    [
        *(
            ("self_attn.o_proj", kind, READS)
            for kind in ("W8A16", "W8A8_MIX", "W8A8_MXFP8", "W8A8FP8_DYNAMIC", "W4A8_MXFP")
        ),
        ("self_attn.o_proj", "W4A4_DYNAMIC", READS),
        ("self_attn.o_proj", "W4A8_DYNAMIC", NONE),  # of experts alone
        ("self_attn.o_proj", "W4A16", NONE),
        ("self_attn.o_proj", "w8a16", NONE),
        ("self_attn.o_proj", "NONSENSE", NONE),
        ("self_attn.o_proj", "W8A8SC", NONE),  # on the Atlas 300I, whose classes are others
        ("mlp.experts", "W4A8_DYNAMIC", READS),
        ("mlp.experts", "W4A16", READS),
        ("mlp.experts", "W8A8_MXFP8", READS),
        ("mlp.experts", "W8A16", NONE),
        ("mlp.experts", "NONSENSE", NONE),
    ],
)
def test_of_a_precision_it_is_said_whether_vllm_ascend_has_a_class(
    module: str, kind: str, said: str, tmp_path: Path
) -> None:
    stated = FIRST_EXPERT if module == "mlp.experts" else (module,)
    description = described(dict.fromkeys(stated, kind))
    model = read_model(ascend(tmp_path, json.dumps(description).encode()))
    with pytest.raises(ModelError) as error:
        model.weight_bytes(ONE, 0)
    modules = "experts" if "experts" in module else "linears"
    assert f"states {kind} for " in str(error.value)
    assert f": {said.format(modules)}" in str(error.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b"\xff", b'{"a": ' + b"[" * 50_000, b" " * (MAX_DESCRIPTION_BYTES + 1)],
)
def test_a_broken_description_is_one_message(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=DESCRIPTION):
        read_model(ascend(tmp_path, raw))


def test_a_description_beside_a_stated_method_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_bytes(b"broken")
    assert read_model(write(tmp_path, GPTQ)).quantization == "gptq_int4_g128"


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
