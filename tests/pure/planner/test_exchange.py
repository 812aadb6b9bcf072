"""The exchange of tokens, planned: whole linears, the larger group, and what has no exchange."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from checkpoints import deepseek, small_config
from console import complaint, document, said
from vllm_layershard import LayerShardConfig, Layout, PlanError, map_layers, plan_model
from vllm_layershard.models import Deployment, layer_operations, read_model
from vllm_layershard.models.operation import Batch
from vllm_layershard.plan import ParallelLayout

GIB = 1 << 30
WEIGHT, SCALES = 7168 * 16384, 56 * 128 * 4
"""o_proj of DeepSeek-V3: a byte an element, and a float32 for 128 x 128 of them."""
LAYERS = 61
O_PROJ = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}


def held(result, *, name: str = "o_proj") -> int:
    """What the fullest rank holds of a series' weights, slots included."""
    (series,) = (one for one in result.series if one.name == name)
    return max(series.resident_bytes) + series.slot_bytes


@pytest.mark.parametrize(("dp", "ranks", "gib"), [(1, 8, "1.09"), (2, 16, "0.66"), (4, 32, "0.44")])
def test_the_worst_rank_holds_whole_layers_of_all_ranks(dp: int, ranks: int, gib: str) -> None:
    """Of 61 layers: a K-th, rounded up, and two slots."""
    result = plan_model("DeepSeek-V3", layout=Layout(tp=8, dp=dp), **O_PROJ)
    (series,) = result.series
    assert (series.group_size, series.tp_replicated) == (ranks, True)
    assert (series.layer_bytes, series.small_bytes) == (WEIGHT, SCALES)
    assert held(result) == (-(-LAYERS // ranks) + 2) * WEIGHT
    assert f"{held(result) / GIB:.2f}" == gib
    assert result.groups[0].ranks == (tuple(range(ranks)),)


def test_whole_weights_are_counted_on_every_rank() -> None:
    """Beside plain tensor parallelism: 6.67 GiB instead of .83."""
    layout = Layout(tp=8, ep=True)
    whole = plan_model("DeepSeek-V3", layout=layout, placement="replicated", **O_PROJ)
    plain = plan_model("DeepSeek-V3", ["fused_qkv_a_proj"], layout)
    grown = whole.memory.weight_bytes_replicated - plain.memory.weight_bytes_replicated
    assert grown == LAYERS * (WEIGHT + SCALES) * 7 // 8
    assert f"{LAYERS * WEIGHT / 8 / GIB:.2f} {LAYERS * WEIGHT / GIB:.2f}" == "0.83 6.67"
    assert whole.memory.saved_bytes_min == 0


def test_the_engines_of_a_dense_model_share_each_within_itself() -> None:
    result = plan_model("Qwen3-32B", layout=Layout(tp=2, dp=2), **O_PROJ)
    assert result.groups[0].ranks == ((0, 1), (2, 3))
    assert result.sharding.movement == "pull", "two GPUs of a node"


def test_without_names_the_default_ones_are_those_that_have_copies_then() -> None:
    result = plan_model("DeepSeek-V3", layout=Layout(tp=8), token_exchange="o_proj")
    assert result.sharding.layers == ("o_proj",)
    result = plan_model("DeepSeek-V3", layout=Layout(tp=4, dp=2), token_exchange="o_proj")
    assert result.sharding.layers == ("o_proj", "q_b_proj")
    sizes = {series.name: series.group_size for series in result.series}
    assert sizes == {"o_proj": 8, "q_b_proj": 2}
    result = plan_model("Qwen3-32B", layout=Layout(tp=2, dp=2), token_exchange="o_proj")
    assert result.sharding.layers == ("o_proj",)


@pytest.mark.parametrize(("tokens", "rows"), [(8192, 1024), (1, 1), (7, 1), (8, 1), (9, 2)])
def test_a_rank_multiplies_its_share_of_the_rows_by_the_whole_weight(tokens: int, rows: int):
    layout = ParallelLayout(tp=8)
    blueprint = read_model("DeepSeek-V3").blueprint
    batch = Batch(tokens, context=0.0, decode=False)

    def operation(*exchange: str):
        deployment = Deployment(layout, exchange=exchange)
        (found,) = (
            one
            for one in layer_operations(blueprint, 0, deployment, batch)
            if one.linear.endswith("o_proj")
        )
        return found

    split, whole = operation(), operation("o_proj")
    assert split.flops == 2 * tokens * 7168 * 2048
    assert whole.flops == 2 * rows * 7168 * 16384
    assert whole.flops == split.flops or tokens % 8
    assert split.moved_bytes == WEIGHT / 8 + 2 * tokens * (7168 + 2048)
    assert whole.moved_bytes == WEIGHT + 2 * rows * (7168 + 16384)


def test_a_draft_layer_exchanges_nothing() -> None:
    layout, names = Layout(tp=8), ["o_proj"]
    drafts = [
        plan_model(
            "DeepSeek-V3", names, layout, mtp=1, placement="replicated", **options
        ).memory.weight_bytes_parts.drafts
        for options in ({}, {"token_exchange": names})
    ]
    assert drafts[0] == drafts[1] > 0


def test_the_launch_line_and_the_json_say_it() -> None:
    words = ["--model", "DeepSeek-V3", "--tp", "8", "--layers", "o_proj"]
    result = document("plan", *words, "--token-exchange", "o_proj")
    said_ = shlex.split(result["launch"])
    config = json.loads(said_[said_.index("--additional-config") + 1])["layer_sharding"]
    assert config == {"layers": ["o_proj"], "token_exchange": ["o_proj"]}
    assert result["sharding"]["token_exchange"] == ["o_proj"]
    mapped = document("map", *words, "--token-exchange", "o_proj")
    assert mapped["sharding"]["token_exchange"] == ["o_proj"]
    assert [len(group) for group in mapped["groups"][0]["ranks"]] == [8]
    without = document("plan", "--model", "DeepSeek-V3")
    assert without["sharding"]["token_exchange"] == []


@pytest.mark.parametrize("name", ["o_proj", "self_attn.o_proj"])
def test_every_alternative_exchanges_it_too(name: str, tmp_path: Path) -> None:
    layout = Layout(tp=4, dp=2)
    result = plan_model("DeepSeek-V3", [name], layout, token_exchange=name)
    points = result.alternatives()
    assert points[0].layers == (name,)
    assert points[0].saved_bytes == result.memory.saved_bytes_min
    assert all(point.layers[0] == name for point in points)
    assert any("q_b_proj" in point.layers for point in points)
    words = ["--tp", "4", "--dp", "2", "--layers", name, "--token-exchange", name]
    said("plan", "--model", "DeepSeek-V3", *words, "--html", str(tmp_path / "plan.html"))
    assert "Exchange of tokens: wins from" in (tmp_path / "plan.html").read_text()


def test_check_takes_it_from_the_configuration_and_from_the_flag() -> None:
    words = ["--model", "DeepSeek-V3", "--tp", "8"]
    stated = '{"layer_sharding": {"layers": ["o_proj"], "token_exchange": ["o_proj"]}}'
    plain = '{"layer_sharding": ["o_proj"]}'
    flag = ["--token-exchange", "o_proj"]
    shown = said("check", stated, *words)
    assert "o_proj: 61 layers of 117,440,512 bytes over 8 ranks, 2 slots" in shown
    assert said("check", plain, *words, *flag) == said("check", stated, *words, *flag) == shown
    code, message = complaint("check", stated, *words, "--token-exchange", "q_b_proj")
    assert code == 2
    assert "the additional config says o_proj itself" in message
    code, message = complaint("check", plain, *words, "--token-exchange", "q_b_proj")
    assert code == 2
    assert "'q_b_proj' is not among layers ('o_proj')" in message


def test_compare_counts_it_with_shards_and_without() -> None:
    layouts = ["tp8", "tp8+exchange", "tp8+exchange+shard", "tp8dp2", "tp8dp2+exchange+shard"]
    flags = [word for layout in layouts for word in ("--layout", layout)]
    rows = document("compare", "--model", "DeepSeek-V3", *flags)["layouts"]
    held_by = {row["layout"]: row["weight_bytes"] for row in rows}
    whole = held_by["tp8+exchange"] - held_by["tp8"]
    assert whole == LAYERS * (WEIGHT + SCALES) * 7 // 8
    saved = held_by["tp8+exchange"] - held_by["tp8+exchange+shard"]
    assert saved == (LAYERS - 8 - 2) * WEIGHT
    assert held_by["tp8dp2+exchange+shard"] < held_by["tp8dp2"], "six of 61 layers, not an eighth"
    tokens = {row["layout"]: row["tokens"] for row in rows}
    assert tokens["tp8+exchange"] < tokens["tp8+exchange+shard"] < tokens["tp8"]


@pytest.mark.parametrize(
    ("model", "exchanged"),
    [
        ("Qwen3-Next-80B-A3B-Instruct", {"self_attn.o_proj", "linear_attn.out_proj"}),
        ("Ling-1T", {"attention.dense"}),
        ("LongCat-Flash-Chat", {"self_attn.0.o_proj", "self_attn.1.o_proj"}),
    ],
)
def test_compare_exchanges_what_the_attentions_put_out(model: str, exchanged: set[str]) -> None:
    flags = ["--layout", "tp4+ep", "--layout", "tp4+ep+exchange", "--hardware", "B300"]
    plain, whole = document("compare", "--model", model, *flags)["layouts"]
    linears = read_model(model).linears(Deployment(ParallelLayout(), ep=True))
    grown = sum(
        linear.large_bytes for linear in linears if any(linear.is_named(name) for name in exchanged)
    )
    assert 0 <= whole["weight_bytes"] - plain["weight_bytes"] - grown * 3 // 4 < 1 << 20


def test_compare_exchanges_no_layer_that_is_not_sharded() -> None:
    flags = ["--model", "DeepSeek-V3", "--layout", "tp8dp2+exchange+shard", "--layers"]
    (row,) = document("compare", *flags, "o_proj,q_b_proj")["layouts"]
    assert row["weight_bytes"]
    code, message = complaint("compare", *flags, "q_b_proj")
    assert code == 2
    assert "'o_proj' is not among layers ('q_b_proj')" in message


REFUSED = {
    "one rank": (["--dp", "8"], "there is nothing to exchange"),
    "a column-parallel linear": (
        ["--tp", "8", "--layers", "q_b_proj", "--token-exchange", "q_b_proj"],
        "'q_b_proj' is model.layers.0.self_attn.q_b_proj, which is column-parallel",
    ),
    "a whole linear": (
        *(["--tp", "8", "--layers", "fused_qkv_a_proj", "--token-exchange", "fused_qkv_a_proj"],),
        "which is whole on every tensor-parallel rank already",
    ),
    "a linear that is not sharded": (
        ["--tp", "8", "--layers", "q_b_proj"],
        "token_exchange: 'o_proj' is not among layers ('q_b_proj')",
    ),
    "no linear": (
        ["--tp", "8", "--layers", "o_pro", "--token-exchange", "o_pro"],
        "'o_pro' matches no linear of this model",
    ),
    "sequence parallelism": (["--tp", "4", "--dp", "2", "--ep"], "(sequence parallelism)"),
    "shared experts, which are summed with the routed ones": (
        *(["--tp", "8", "--layers", "shared_experts.down_proj"],),
        "leaves its sums to be added up by what follows it in DeepseekV3ForCausalLM",
    ),
    "a choice of the planner's": (["--tp", "8", "--layers", "auto"], "name the linears beside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exchange_is_refused_in_one_line(case: str) -> None:
    flags, why = REFUSED[case]
    layers = flags[flags.index("--layers") + 1] if "shared" in case else "o_proj"
    exchange = [] if "--token-exchange" in flags else ["--token-exchange", layers]
    code, message = complaint("plan", "--model", "DeepSeek-V3", *flags, *exchange)
    assert code == 2
    assert why in message
    assert "\n" not in message


@pytest.mark.parametrize("model", ["DeepSeek-V3.2", "GLM-5-FP8"])
@pytest.mark.parametrize("name", ["o_proj", "mlp.down_proj"])
def test_a_class_that_adds_up_in_its_norms_is_refused(model: str, name: str) -> None:
    config = LayerShardConfig((name,), token_exchange=(name,))
    with pytest.raises(PlanError, match="leaves its sums to be added up by what follows it"):
        map_layers(model, layout=Layout(tp=4), config=config)


def test_a_bias_that_one_rank_alone_adds_is_refused(tmp_path: Path) -> None:
    """As vllm-ascend has it for W8A8 with static activations."""
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    tensors = [name for name in deepseek(small_config()) if name.endswith(".weight")]
    described = {name: "W8A8" if ".o_proj." in name else "FLOAT" for name in tensors}
    (tmp_path / "quant_model_description.json").write_text(json.dumps(described))
    with pytest.raises(PlanError, match="vllm-ascend adds on the first tensor-parallel rank alone"):
        plan_model(tmp_path, layout=Layout(tp=2), **O_PROJ)


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--layers", "o_proj", "--token-exchange", "o_proj", "--tp", "3"],
        ["plan", "--token-exchange", "o_proj", "--tp", "3"],
        ["map", "--layers", "o_proj", "--token-exchange", "o_proj", "--tp", "3"],
        ["check", '{"layers": ["o_proj"], "token_exchange": ["o_proj"]}', "--tp", "3"],
        ["compare", "--layout", "tp3+exchange"],
    ],
    ids=lambda command: f"{command[0]}-{len(command)}",
)
def test_ranks_that_do_not_divide_the_heads_are_refused_in_a_line(command: list[str]) -> None:
    name, *rest = command
    code, message = complaint(name, "--model", "DeepSeek-V3", *rest)
    assert code == 2
    assert "does not divide num_attention_heads = 128" in message


def test_the_verdict_says_prefill_only_where_the_prefill_wins() -> None:
    words = ["--model", "DeepSeek-V3", "--tp", "8", "--layers", "o_proj"]
    exchange = ["--token-exchange", "o_proj", "--hardware", "H200", "--tokens"]
    for tokens, only in ((256, False), (8192, True)):
        verdict = document("plan", *words, *exchange, str(tokens))["exchange"]["verdict"]
        assert f"a prefill of {tokens:,} tokens {'gains' if only else 'loses'}" in verdict
        assert verdict.endswith(": prefill only") == only


def test_a_refusal_among_several_layouts_says_which() -> None:
    layouts = ["--layout", "tp8", "--layout", "tp8+ep+shard", "--layout", "dp8+ep"]
    code, message = complaint("compare", "--model", "DeepSeek-V3", *layouts)
    assert code == 2
    assert "--layout tp8+ep+shard: " in message
