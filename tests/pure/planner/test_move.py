"""What the planner says of a configuration whose forwards may move tokens."""

from __future__ import annotations

import json

import pytest

from console import complaint, layershard
from vllm_layershard.config import KEY
from vllm_layershard.planner.serve_command import additional_config
from vllm_layershard.schema import validated

AUTO = {"layers": ["o_proj"], "move": "auto", "move_weights_from": 400}
ALWAYS = {"layers": ["o_proj"], "move": "activations"}


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_the_launch_line_says_it_as_it_was_given(value):
    assert json.loads(additional_config(validated(value))) == {KEY: value}


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_a_check_passes_and_says_nothing_of_times_that_it_does_not_print(value):
    ended = layershard("check", json.dumps({KEY: value}), "--model", "DeepSeek-V3", "--dp", "8")
    assert ended.code == 0
    assert ended.stdout.startswith("ok: deepseek-ai/DeepSeek-V3 on 8 ranks shards o_proj")
    assert f"note: move {value['move']!r}: answers are equal to rounding only\n" in ended.stderr
    assert "times" not in ended.stderr


def test_replicas_that_do_not_know_each_others_tokens_are_refused():
    code, text = complaint("check", json.dumps({KEY: AUTO}), "--model", "Qwen3-32B", "--dp", "2")
    assert code == 2
    assert f"{KEY}.move = 'auto': the 2 data-parallel ranks of a dense model are engines" in text


@pytest.mark.parametrize("value", [AUTO, ALWAYS])
def test_a_layout_with_sequence_parallelism_is_refused_as_the_server_refuses_it(value):
    layout = ["--model", "DeepSeek-V3", "--tp", "2", "--dp", "4", "--ep"]
    code, text = complaint("check", json.dumps({KEY: value}), *layout)
    assert code == 2
    assert f"{KEY}.move = {value['move']!r}: with sequence parallelism of routed experts" in text
