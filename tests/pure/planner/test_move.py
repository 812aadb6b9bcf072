"""What `check`, `compare` and `map` say where forwards may move tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from console import complaint, document, layershard, said
from layershard_cli.render.units import size
from vllm_layershard import ConfigError, Layout, PlanError, compare_layouts, plan_model
from vllm_layershard.config import KEY
from vllm_layershard.planner.results.compare_result import LayoutCapacity
from vllm_layershard.planner.serve_command import additional_config
from vllm_layershard.schema import validated

AUTO: dict[str, Any] = {"layers": ["o_proj"], "move": "auto", "move_weights_from": 400}
ALWAYS: dict[str, Any] = {"layers": ["o_proj"], "move": "activations"}

COMPARE = ["compare", "--model", "DeepSeek-V3", "--hardware", "RTX-PRO-6000"]
LAYOUTS = ["--layout", "dp8+ep", "--layout", "dp8+ep+shard", "--layout", "dp8+ep+striped"]


def _row(layout: str, **options: Any) -> LayoutCapacity:
    hardware = options.pop("hardware", "RTX-PRO-6000")
    (row,) = compare_layouts("DeepSeek-V3", layout, hardware=hardware, **options).layouts
    assert isinstance(row, LayoutCapacity)
    return row


@pytest.mark.parametrize("hardware", ["RTX-PRO-6000", "H200", "MI300X"])
@pytest.mark.parametrize(("word", "placement"), [("shard", "round_robin"), ("striped", "striped")])
@pytest.mark.parametrize(
    "rule", [{"move": "auto"}, {"move": "auto", "move_weights_from": 50}, {"move": "activations"}]
)
def test_a_row_has_what_the_plan_of_its_layout_has(
    hardware: str, word: str, placement: Any, rule: dict[str, Any]
) -> None:
    row = _row(f"dp8+ep+{word}", hardware=hardware, **rule)
    layout = Layout(dp=8, ep=True)
    plan = plan_model("DeepSeek-V3", layout=layout, hardware=hardware, placement=placement, **rule)
    assert row.move is not None
    assert plan.move is not None
    for key in row.move._fields:
        assert getattr(row.move, key) == getattr(plan.move, key)
    assert row.engine_tokens == plan.room_tokens


def test_the_document_has_it_and_the_text_two_columns() -> None:
    flags = [*COMPARE, *LAYOUTS, "--move", "auto"]
    rows = document(*flags, "--json")["layouts"]
    lines = said(*flags).splitlines()
    assert rows[0]["move"] is None
    assert lines[1].endswith("  tokens in all  move weights from    gathered")
    assert lines[2].split()[-2:] == ["-", "-"]
    for line, row in zip(lines[3:5], rows[1:], strict=True):
        gathered = size(row["move"]["gathered_bytes"])
        assert f"  {row['move']['move_weights_from']:,} tokens  " in line
        assert line.rstrip().endswith(gathered)
    assert "answers are equal to rounding only" in " ".join(lines).lower()
    always = said(*COMPARE, *LAYOUTS, "--move", "activations").splitlines()
    assert always[3].split()[-3] == "never"


def test_where_weights_move_there_is_no_such_column() -> None:
    plain = said(*COMPARE, *LAYOUTS)
    assert said(*COMPARE, *LAYOUTS, "--move", "weights") == plain
    assert "gathered" not in plain
    assert [row["move"] for row in document(*COMPARE, *LAYOUTS, "--json")["layouts"]] == [None] * 3


@pytest.mark.parametrize(
    ("model", "layout", "options", "error", "words"),
    [
        ("Qwen3-32B", "dp2+shard", {}, PlanError, "data-parallel ranks of a dense model are"),
        ("DeepSeek-V3", "tp2dp4+ep+shard", {}, PlanError, "sequence parallelism of routed experts"),
        (
            "DeepSeek-V3",
            "dp16+ep+shard",
            {"hardware": "910B2"},
            PlanError,
            "dummy batches leave out attention's linears",
        ),
        ("DeepSeek-V3", "tp8+exchange+shard", {}, ConfigError, "token_exchange"),
        ("DeepSeek-V3", "tp8", {}, ConfigError, "move: none of the layouts is sharded"),
    ],
)
@pytest.mark.parametrize("rule", [{"move": "auto"}, {"move": "activations"}])
def test_what_a_plan_refuses_a_comparison_refuses(
    model: str,
    layout: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    rule: dict[str, Any],
) -> None:
    with pytest.raises(error, match=words):
        compare_layouts(model, layout, **options, **rule)


def test_a_usual_layout_that_is_refused_does_not_hide_the_others_refusal() -> None:
    code, message = complaint("compare", "--model", "Qwen3-32B", "--move", "activations")
    assert code == 2
    assert "data-parallel ranks of a dense model are engines of their own" in message


def test_a_device_without_numbers_is_named_with_the_layout() -> None:
    flags = ["--hardware", "MI300X", "--layout", "dp32+ep+shard", "--move", "auto"]
    code, message = complaint("compare", "--model", "DeepSeek-V3", *flags)
    assert code == 3
    assert message.startswith("layershard: --layout dp32+ep+shard: --move auto: MI300X lacks ")
    given = document(
        "compare", "--model", "DeepSeek-V3", *flags, "--move-weights-from", "64", "--json"
    )
    (row,) = given["layouts"]
    assert row["move"]["move_weights_from"] == 64
    assert row["move"]["break_even_tokens"] is None
    assert row["move"]["lacking"]


def test_two_gpus_that_pull_from_each_other_keep_no_communicator() -> None:
    """As the plan of that layout: a comparison counted a broadcast's."""
    row = compare_layouts("DeepSeek-V2-Lite", "dp2+ep+shard", hardware="H200").layouts[0]
    plan = plan_model("DeepSeek-V2-Lite", layout=Layout(dp=2, ep=True), hardware="H200")
    assert isinstance(row, LayoutCapacity)
    assert plan.planned.transport_names == ("pull",)
    assert row.engine_tokens == plan.room_tokens


def test_a_map_has_the_stripes_of_rows() -> None:
    """Three ranks cut the 2,048 rows of o_proj, of 2,048 columns, elsewhere than its bytes."""
    flags = ["map", "--model", "DeepSeek-V2-Lite", "--dp", "3", "--ep", "--layers", "o_proj"]
    flags += ["--placement", "striped", "--json"]
    cut = document(*flags, "--move", "activations")["groups"][0]["series"][0]["stripes"]
    plain = document(*flags)["groups"][0]["series"][0]["stripes"]
    row_bytes = 2 * 2048
    assert all(end % row_bytes == 0 for _, end in cut)
    assert not all(end % row_bytes == 0 for _, end in plain)


def test_a_map_takes_the_threshold_and_does_not_look_for_one() -> None:
    flags = ["map", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--move", "auto"]
    told = document(*flags, "--move-weights-from", "300", "--json")
    assert told["sharding"]["move_weights_from"] == 300
    code, message = complaint(*flags)
    assert code == 2
    assert "layer_sharding.move_weights_from: is missing" in message
    code, message = complaint("map", "--model", "Qwen3-32B", "--dp", "2", "--move", "activations")
    assert code == 2
    assert "data-parallel ranks of a dense model are engines of their own" in message


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_the_launch_line_says_it_as_it_was_given(value: dict[str, Any]) -> None:
    assert json.loads(additional_config(validated(value))) == {KEY: value}


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_a_check_passes_and_says_nothing_of_times_that_it_does_not_print(
    value: dict[str, Any],
) -> None:
    ended = layershard("check", json.dumps({KEY: value}), "--model", "DeepSeek-V3", "--dp", "8")
    assert ended.code == 0
    assert ended.stdout.startswith("ok: deepseek-ai/DeepSeek-V3 on 8 ranks shards o_proj")
    assert f"note: move {value['move']!r}: answers are equal to rounding only\n" in ended.stderr
    assert "times" not in ended.stderr


def test_replicas_that_do_not_know_each_others_tokens_are_refused() -> None:
    code, text = complaint("check", json.dumps({KEY: AUTO}), "--model", "Qwen3-32B", "--dp", "2")
    assert code == 2
    assert f"{KEY}.move = 'auto': the 2 data-parallel ranks of a dense model are engines" in text


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_a_layout_with_sequence_parallelism_is_refused_as_the_server_refuses_it(
    value: dict[str, Any],
) -> None:
    layout = ["--model", "DeepSeek-V3", "--tp", "2", "--dp", "4", "--ep"]
    code, text = complaint("check", json.dumps({KEY: value}), *layout)
    assert code == 2
    assert f"{KEY}.move = {value['move']!r}: with sequence parallelism of routed experts" in text
