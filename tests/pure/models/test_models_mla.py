"""The DeepSeek family: totals, shapes per rank, cache bytes."""

import json
from pathlib import Path

import pytest

from truth.compare import CONFIGS
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError, ModelError, PlanError
from vllm_layershard.estimate.auto_layers import candidates
from vllm_layershard.models import Deployment, bundled_names, read_model
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.plan import plan_model

ONE = Deployment(ParallelLayout())


def linear(model: str, deployment: Deployment, prefix: str) -> Linear:
    found = [x for x in read_model(model).linears(deployment) if x.prefix == prefix]
    assert len(found) == 1
    return found[0]


def test_v2_lite_total_is_its_parameter_count() -> None:
    held = read_model("DeepSeek-V2-Lite").weight_bytes(ONE, 0)
    assert held.total == 2 * 15_706_484_224
    assert held.derived == 0


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("DeepSeek-V2-Lite", 27 * 576 * 2),
        ("DeepSeek-V3", 70272),
        ("DeepSeek-R1", 70272),
        ("DeepSeek-V3.1", 70272),
        ("DeepSeek-V3.2", 70272 + 61 * 132),
        ("Kimi-K2-Instruct", 70272),
        ("GLM-5", 78 * (1152 + 132)),
        ("GLM-5.1-FP8", 78 * (1152 + 132)),
    ],
)
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    model = read_model(name)
    assert model.kv_bytes_per_token("auto", range(model.num_layers), ONE) == kv_bytes


def test_an_fp8_cache_holds_what_vllm_holds_of_a_token() -> None:
    assert read_model("DeepSeek-V3").kv_bytes_per_token("fp8", range(61), ONE) == 61 * 576
    assert read_model("DeepSeek-V3.2").kv_bytes_per_token("fp8", range(61), ONE) == 61 * (656 + 132)
    with pytest.raises(ConfigError, match="known are auto"):
        read_model("DeepSeek-V3").kv_bytes_per_token("int4", range(61), ONE)


def test_every_bundled_config_is_planned() -> None:
    assert len(bundled_names()) == 28
    for name in bundled_names():
        model = read_model(name)
        assert {x.layer_id for x in model.linears(ONE)} == set(range(model.num_layers))


def test_shapes_on_a_tensor_parallel_rank() -> None:
    two = Deployment(ParallelLayout(tp=2))
    shapes = {
        "self_attn.fused_qkv_a_proj": ((2112, 7168), True),
        "self_attn.q_b_proj": ((128 * 192 // 2, 1536), False),
        "self_attn.kv_b_proj": ((128 * 256 // 2, 512), False),
        "self_attn.o_proj": ((7168, 16384 // 2), False),
        "mlp.shared_experts.gate_up_proj": ((2 * 2048 // 2, 7168), False),
        "mlp.shared_experts.down_proj": ((7168, 2048 // 2), False),
        "mlp.gate": ((256, 7168), True),
    }
    for suffix, (shape, replicated) in shapes.items():
        found = linear("DeepSeek-V3", two, f"model.layers.3.{suffix}")
        assert (found.tensors[0].shape, found.tp_replicated) == (shape, replicated)


def test_block_scales_are_small_tensors() -> None:
    o_proj = linear("DeepSeek-V3", ONE, "model.layers.0.self_attn.o_proj")
    weight, scale = o_proj.tensors
    assert (weight.dtype, weight.nbytes) == ("float8_e4m3fn", 117440512)
    assert (scale.name, scale.shape, scale.nbytes) == ("weight_scale_inv", (56, 128), 28672)
    assert (o_proj.large_bytes, o_proj.small_bytes) == (117440512, 28672)


def test_the_router_and_the_fused_indexer_stay_unquantised() -> None:
    gate = linear("DeepSeek-V3.2", ONE, "model.layers.3.mlp.gate")
    fused = linear("DeepSeek-V3.2", ONE, "model.layers.3.self_attn.indexer.wk_weights_proj")
    wq_b = linear("DeepSeek-V3.2", ONE, "model.layers.3.self_attn.indexer.wq_b")
    assert [len(x.tensors) for x in (gate, fused, wq_b)] == [1, 1, 2]
    assert fused.tensors[0].shape == (128 + 64, 7168)


def test_sequence_parallel_moe_keeps_shared_experts_whole() -> None:
    deployment = Deployment(ParallelLayout(tp=2, dp=2), ep=True)
    down = linear("DeepSeek-V3", deployment, "model.layers.3.mlp.shared_experts.down_proj")
    dense = linear("DeepSeek-V3", deployment, "model.layers.0.mlp.down_proj")
    assert (down.tp_replicated, down.tensors[0].shape) == (True, (7168, 2048))
    assert (dense.tp_replicated, dense.tensors[0].shape) == (False, (7168, 9216))


def test_experts_are_split_over_all_ranks_with_and_without_ep() -> None:
    model = read_model("DeepSeek-V3")
    whole = model.weight_bytes(ONE, 0).experts
    for ep in (False, True):
        eighth = model.weight_bytes(Deployment(ParallelLayout(dp=8), ep=ep), 0).experts
        assert eighth * 8 == whole


def test_spare_experts_lie_on_the_first_ranks() -> None:
    model = read_model("DeepSeek-V3")
    three = Deployment(ParallelLayout(dp=3), ep=True)
    first, second, third = (model.weight_bytes(three, rank).experts for rank in range(3))
    assert first > second == third


def test_pipeline_stages_hold_embedding_and_head() -> None:
    model = read_model("DeepSeek-V3")
    stages = [model.weight_bytes(Deployment(ParallelLayout(pp=2)), rank) for rank in (0, 1)]
    assert [(s.embedding > 0, s.head > 0) for s in stages] == [(True, False), (False, True)]
    together = model.weight_bytes(ONE, 0)
    assert sum(s.total for s in stages) == together.total


def test_absorbed_weights_of_an_fp8_model_are_counted() -> None:
    held = read_model("DeepSeek-V3").weight_bytes(ONE, 0)
    assert held.derived == 61 * 128 * 256 * 512 * 2


@pytest.mark.parametrize(
    ("layout", "ep", "message"),
    [
        (ParallelLayout(tp=3), False, "num_attention_heads"),
        (ParallelLayout(dp=128), False, "fp8 block of 128"),
        (ParallelLayout(dp=512), True, "share 256 routed experts"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(
    layout: ParallelLayout, ep: bool, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        read_model("DeepSeek-V3").linears(Deployment(layout, ep=ep))


def test_half_a_fused_linear_cannot_stay_unquantised(tmp_path: Path) -> None:
    from vllm_layershard.models.sources import source

    config = json.loads((source._BUNDLED / "deepseek-ai--DeepSeek-V3.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["model.layers.0.mlp.up_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="some but not all"):
        read_model(str(tmp_path)).linears(ONE)


def test_a_missing_dtype_is_noted(tmp_path: Path) -> None:
    from vllm_layershard.models.sources import source

    config = json.loads((source._BUNDLED / "deepseek-ai--DeepSeek-V3.json").read_text())
    del config["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model(str(tmp_path))
    assert model.dtype == "bfloat16"
    assert "bfloat16 is assumed" in model.notes[0]


def test_what_the_min_latency_gemm_reads_is_never_chosen_and_a_plan_of_it_says_so(
    tmp_path: Path,
) -> None:
    """DeepSeek-V3's shape in bfloat16; in fp8 its quant method reads it, as everything else."""
    config = json.loads((CONFIGS / "deepseek-ai--DeepSeek-V3.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    wide, narrow = read_model(str(tmp_path)), read_model("DeepSeek-V3")
    deployment = Deployment(ParallelLayout(dp=16), ep=True)
    template = LayerShardConfig(layers=("o_proj",))
    assert "fused_qkv_a_proj" not in candidates(wide, deployment, template)
    assert "fused_qkv_a_proj" in candidates(narrow, deployment, template)
    layout = Layout(dp=16, ep=True)
    (warning,) = [
        warning
        for warning in plan_model(str(tmp_path), "fused_qkv_a_proj", layout).warnings
        if "min-latency" in warning
    ]
    assert warning.startswith("series fused_qkv_a_proj: on Hopper and on Blackwell 10.x")
    found = plan_model("DeepSeek-V3", "fused_qkv_a_proj", layout).warnings
    assert not [warning for warning in found if "min-latency" in warning]
