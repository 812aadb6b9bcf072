"""The linears that are sharded where nobody names any, and the bounds that a launch needs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from checkpoints import small_config
from console import complaint, document, said
from vllm_layershard import Layout, PlanError, compare_layouts, load_model, plan_model
from vllm_layershard.models import Deployment, Model, bundled_names, is_min_latency, read_model
from vllm_layershard.models.sources import source
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.plan.linear import suffix_of
from vllm_layershard.planner.default_layers import default_names

ATTENTIONS = ("self_attn", "linear_attn", "attention", "attn")
"""What vLLM calls the modules of an attention within a decoder layer, in the bundled models."""


def data_parallel(model: Model, dp: int = 8) -> Deployment:
    return Deployment(ParallelLayout(dp=dp), ep=model.is_moe)


def offered(model: Model) -> list[Linear]:
    """The linears of the attention that may be sharded, by their names alone."""
    return [
        linear
        for linear in model.linears(data_parallel(model))
        if suffix_of(linear.prefix).split(".")[0] in ATTENTIONS
        and refusal_of(suffix_of(linear.prefix)) is None
        and not is_min_latency(linear)
    ]


@pytest.mark.parametrize("name", bundled_names())
def test_all_that_have_a_fifth_of_the_largest_and_no_other(name: str) -> None:
    model = read_model(name)
    linears = offered(model)
    names = default_names(model, data_parallel(model))
    chosen = [[x for x in linears if x.is_named(name)] for name in names]
    assert all(chosen)
    assert all(len({suffix_of(x.prefix) for x in alike}) == 1 for alike in chosen)
    sizes = [max(x.large_bytes for x in alike) for alike in chosen]
    assert sizes == sorted(sizes, reverse=True)
    largest = max(x.large_bytes for x in linears)
    taken = {suffix_of(x.prefix) for alike in chosen for x in alike}
    for linear in linears:
        assert (suffix_of(linear.prefix) in taken) == (5 * linear.large_bytes >= largest), linear


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("DeepSeek-V3", ["o_proj", "q_b_proj"]),
        ("DeepSeek-V3.2", ["o_proj", "q_b_proj"]),
        ("GLM-5.2-FP8", ["o_proj", "q_b_proj"]),
        ("Kimi-K2-Instruct", ["o_proj", "q_b_proj", "fused_qkv_a_proj"]),
        ("Kimi-K2.5", ["o_proj", "q_b_proj"]),  # vLLM reads its A projection outside
        ("DeepSeek-V2-Lite", ["q_proj", "o_proj"]),
        ("Qwen3-32B", ["qkv_proj", "o_proj"]),
        ("Qwen3-Next-80B-A3B-Instruct", ["in_proj_qkvz", "qkv_proj", "out_proj", "o_proj"]),
        ("Qwen3.5-397B-A17B", ["in_proj_qkvz", "qkv_proj", "out_proj", "o_proj"]),
        ("Ling-1T", ["query_key_value", "dense"]),
    ],
)
def test_of_each_kind(model: str, names: list[str]) -> None:
    found = read_model(model)
    assert default_names(found, data_parallel(found)) == names
    # Tensor parallelism splits some and not others; what is large does not depend on it.
    assert default_names(found, Deployment(ParallelLayout(tp=2, dp=2), ep=found.is_moe)) == names
    layers = {linear.layer_id for linear in found.linears(data_parallel(found))}
    plan = plan_model(model, layout=Layout(dp=8, ep=found.is_moe))
    owned = [plan.planned.groups[0].plan.series[i].owner_of_layer for i in range(len(names))]
    assert set().union(*owned) == layers, "every layer has some"


@pytest.mark.parametrize("name", ["Qwen3-Next-80B-A3B-Instruct", "Qwen3.5-397B-A17B"])
def test_a_linear_of_one_layer_is_left_out_beside_others(name: str, tmp_path: Path) -> None:
    """Four layers of a hybrid have one full attention, whose linears no layer is ahead of."""
    config = json.loads((source._BUNDLED / f"{bundled_as(name)}.json").read_text())
    text = config.get("text_config", config)
    text["num_hidden_layers"] = 4
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:4]
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = document("plan", "--model", str(tmp_path), "--dp", "8", "--ep")
    assert plan["sharding"]["layers"] == ["in_proj_qkvz", "out_proj"]
    named = ("plan", "--model", str(tmp_path), "--dp", "8", "--ep", "--layers", "o_proj")
    assert complaint(*named)[0] == 2, "who names it is told"


def test_where_tensor_parallelism_alone_leaves_copies_those_are_sharded() -> None:
    plan = document("plan", "--model", "Kimi-K2-Instruct", "--tp", "8", "--ep")
    assert plan["sharding"]["layers"] == ["fused_qkv_a_proj"]
    code, message = complaint("plan", "--model", "DeepSeek-V3", "--tp", "8")
    assert (code, "a group of one rank has nobody to share with" in message) == (2, True)


def test_a_layer_that_is_not_quantised_counts_with_its_own_bytes(tmp_path: Path) -> None:
    """Of a linear whose layers differ the largest decides."""
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    plain = "model.layers.3.self_attn.q_b_proj"
    sizes = {"q_lora_rank": 256, "hidden_size": 1024, "v_head_dim": 64, "num_attention_heads": 8}
    for ignored, names in (([], ["o_proj"]), ([plain], ["o_proj", "q_b_proj"])):
        config = small_config(
            **sizes, quantization_config=fp8 | {"modules_to_not_convert": ignored}
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = read_model(str(tmp_path))
        found = default_names(model, data_parallel(model, 2))
        assert [name for name in found if name != "fused_qkv_a_proj"] == names


@pytest.mark.parametrize("layer", [0, 30, 60])
@pytest.mark.parametrize("name", ["DeepSeek-V3", "GLM-5.2-FP8"])
def test_one_layer_in_another_form_drops_no_other_linear(
    name: str, layer: int, tmp_path: Path
) -> None:
    """The largest linear is measured by the form that most of its layers have."""
    config = json.loads((source._BUNDLED / f"{bundled_as(name)}.json").read_text())
    section = config["quantization_config"]
    ignored = [f"model.layers.{layer}.self_attn.o_proj"]
    section["modules_to_not_convert"] = [*section.get("modules_to_not_convert", []), *ignored]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model(str(tmp_path))
    o_proj = {x.large_bytes for x in model.linears(data_parallel(model)) if x.is_named("o_proj")}
    assert len(o_proj) == 2
    assert default_names(model, data_parallel(model)) == ["o_proj", "q_b_proj"]


def bundled_as(name: str) -> str:
    (found,) = [each for each in bundled_names() if each.rpartition("/")[2] == name]
    return found.replace("/", "--")


@pytest.mark.parametrize(
    ("flags", "bounds"),
    [
        ("", ["--max-num-batched-tokens", "8192"]),
        ("--tokens 64K", ["--max-num-batched-tokens", "65536"]),
        ("--tokens 1k", ["--max-num-batched-tokens", "1000"]),
        # An engine has one budget, which its context-parallel ranks share out.
        ("--dp 2 --pcp 4 --tokens 16K", ["--max-num-batched-tokens", "65536"]),
        ("--batch 256 --tokens 128", ["--max-num-batched-tokens", "256"]),
        (
            "--batch 4096 --tokens 1K",
            ["--max-num-batched-tokens", "4096", "--max-num-seqs", "4096"],
        ),
        (
            "--batch 300 --dp 4 --pcp 2",
            ["--max-num-batched-tokens", "16384", "--max-num-seqs", "600"],
        ),
        # A decode is in flight for each pipeline stage, and vLLM bounds all that an engine runs.
        (
            "--batch 256 --dp 4 --pp 2",
            ["--max-num-batched-tokens", "8192", "--max-num-seqs", "512"],
        ),
        ("--batch 128 --dp 4 --pp 2", ["--max-num-batched-tokens", "8192"]),
        # No bound of tokens may be below that of sequences.
        ("--batch 100 --dp 4 --pp 2 --tokens 100", ["--max-num-batched-tokens", "200"]),
        (
            "--batch 200 --dp 2 --pp 2 --pcp 2 --tokens 100",
            ["--max-num-batched-tokens", "800", "--max-num-seqs", "800"],
        ),
    ],
)
def test_the_launch_line_asks_for_the_forwards_of_the_plan(flags: str, bounds: list[str]) -> None:
    layout = [] if "--dp" in flags else ["--dp", "8"]
    launch = document("plan", "--model", "DeepSeek-V3.2", "--ep", *layout, *flags.split())["launch"]
    words = shlex.split(launch)
    start, end = words.index("--max-num-batched-tokens"), words.index("--additional-config")
    assert words[start:end] == bounds


def test_a_name_that_matches_nothing_is_refused_by_compare_too() -> None:
    code, message = complaint("compare", "--model", "DeepSeek-V3", "--layers", "nope")
    assert (code, "'nope' matches no linear" in message) == (2, True)
    for flags in (
        ["--layers", "o_proj,nope"],
        ["--layers", "kv_b_proj"],
        ["--prefetch-step", "61"],
    ):
        assert complaint("compare", "--model", "DeepSeek-V3", *flags)[0] == 2
    with pytest.raises(PlanError, match="'nope' matches no linear"):
        compare_layouts(load_model("DeepSeek-V3"), layers=["nope"])


def test_a_usual_layout_that_cannot_be_is_a_row_as_long_as_another_can(tmp_path: Path) -> None:
    config = small_config(vocab_size=512 * 3, num_attention_heads=4)
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = document("compare", "--model", str(tmp_path))["layouts"]
    assert ["refused" in row for row in rows] == [True, False, False]
    few = small_config(num_attention_heads=4, n_routed_experts=4, num_experts_per_tok=2)
    (tmp_path / "config.json").write_text(json.dumps(few))
    for extra in ([], ["--layers", "o_proj"]):
        code, message = complaint("compare", "--model", str(tmp_path), *extra)
        assert (code, message.count("dp8+ep")) == (2, 2)
        assert message.startswith("layershard: none of the usual layouts can be had (tp8: ")
    assert "tp4" in said("compare", "--model", str(tmp_path), "--layout", "tp4")
