"""`layershard check` tells what vLLM passes over: keys near ours, and options beside them."""

from __future__ import annotations

import json

import pytest

from console import complaint, document, layershard

ON_EIGHT = ("--model", "DeepSeek-V3", "--dp", "8", "--ep")
FFN_KEY = "denseffn_tensor_parallel_size"
NO_SPLIT = (
    "No dense MLP is split: additional_config has no key 'denseffn_tensor_parallel_size', but "
    "'denseffn_tensor_parallel'; if that is meant, write {\"denseffn_tensor_parallel_size\": 2}"
)
NO_SHARDING = (
    "Layer sharding is off: additional_config has no key 'layer_sharding', but 'layer-sharding' "
    'and \'layer_shardin\'; if that is meant, write {"layer_sharding": ["o_proj"]}'
)
NEAR_OPTION = (
    "move_weight_from: stands beside layer_sharding, where vLLM would not see it; if "
    'move_weights_from is meant, write it into {"layer_sharding": {...}}'
)
OTHER_CASE = (
    "Move: stands beside layer_sharding, where vLLM would not see it; if move is meant, write it "
    'into {"layer_sharding": {...}}'
)
NOTED = [
    ({"layer_sharding": ["o_proj"], "Move": "auto"}, OTHER_CASE),
    ({"layer_sharding": ["o_proj"], "move_weight_from": 300}, NEAR_OPTION),
    ({"layer_sharding": ["o_proj"], "denseffn_tensor_parallel": 8}, NO_SPLIT),
    ({FFN_KEY: 8, "layer_shardin": ["o_proj"], "layer-sharding": ["o_proj"]}, NO_SHARDING),
]


@pytest.mark.parametrize(("value", "note"), NOTED)
def test_a_key_near_the_one_that_is_not_there_is_a_note_in_text_and_json(
    value: dict[str, object], note: str
) -> None:
    ended = layershard("check", json.dumps(value), *ON_EIGHT)
    assert ended.code == 0
    assert f"note: {note}\n" in ended.stderr
    assert note in document("check", json.dumps(value), *ON_EIGHT)["warnings"]


@pytest.mark.parametrize(
    "value",
    [
        {"layer_sharding": ["o_proj"], "layer_shardin": ["q_b_proj"]},
        {"layer_sharding": ["o_proj"], "weight_prefetch_config": {"layer_shardin": 1}},
        {FFN_KEY: 8, "mlp_tensor_parallel_size": 8},
    ],
)
def test_nothing_is_noted_of_a_key_beside_the_right_one_or_of_others(value: dict) -> None:
    noted = layershard("check", json.dumps(value), *ON_EIGHT).stderr
    assert "additional_config has no key" not in noted


def test_alone_it_is_refused_with_the_key_that_is_near() -> None:
    assert complaint("check", '{"denseffn_tensor_parallel": 8}', *ON_EIGHT) == (
        2,
        f"layershard: {NO_SPLIT}",
    )
    both = {"layer_shardin": ["o_proj"], "layer-sharding": 1, "denseffn_tensor_parallel": 8}
    assert complaint("check", json.dumps(both), *ON_EIGHT) == (
        2,
        f"layershard: {NO_SHARDING}; {NO_SPLIT}",
    )


def test_an_option_beside_the_key_is_refused() -> None:
    value = {"layer_sharding": ["o_proj"], "placement": "striped", "keep_first": True}
    assert complaint("check", json.dumps(value), *ON_EIGHT) == (
        2,
        "layershard: keep_first, placement: stands beside layer_sharding, where vLLM would not "
        'see it; write it into {"layer_sharding": {...}}',
    )
