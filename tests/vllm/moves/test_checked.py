"""`layershard check` refuses what the plugin refuses of the same JSON, in the same words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from console import complaint, said
from hosted.asked import answers as answers_of
from hosted.tiny import CONFIG, write_config

answers = partial(answers_of, data_parallel_size=2)

MOVING = {"layers": ["o_proj"], "move": "activations"}
MLPS = {"finegrained_tp_config": {"mlp_tensor_parallel_size": 2}}
OUTPUTS = {"finegrained_tp_config": {"oproj_tensor_parallel_size": 2}}
PARTS = {"denseffn_tensor_parallel_size": 2}
FLASHCOMM1 = {"enable_flashcomm1": True}

REFUSED: list[dict[str, Any]] = [
    {"layer_sharding": MOVING} | FLASHCOMM1,
    {"layer_sharding": MOVING | {"move": "auto", "move_weights_from": 8}} | FLASHCOMM1,
    {"layer_sharding": ["o_proj"]} | OUTPUTS,
    {"layer_sharding": ["mlp.down_proj", "self_attn.o_proj"]} | MLPS,
    PARTS | FLASHCOMM1,
    PARTS | MLPS,
    {"layer_sharding": ["o_proj"]} | PARTS | MLPS,
]
TAKEN: list[dict[str, Any]] = [
    {"layer_sharding": ["o_proj"]} | FLASHCOMM1,
    {"layer_sharding": ["o_proj"]} | MLPS,
    {"layer_sharding": ["q_b_proj"]} | OUTPUTS,
    {"layer_sharding": MOVING, "enable_flashcomm1": False},
    {"layer_sharding": ["o_proj"], "finegrained_tp_config": None},
    {"layer_sharding": ["o_proj"], "finegrained_tp_config": {"oproj_tensor_parallel_size": 0}},
    PARTS | OUTPUTS,
    {"denseffn_tensor_parallel_size": 1, "layer_sharding": ["o_proj"]} | MLPS | FLASHCOMM1,
]
EXCHANGING = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("checked") / "model", CONFIG)


def _checked(given: dict[str, Any], tp: int = 1) -> list[str]:
    return ["check", json.dumps(given), "--model", "DeepSeek-V3", "--dp", "2", "--tp", str(tp)]


def test_what_the_plugin_refuses_a_check_refuses_in_the_same_words(model):
    found = answers(model, [({}, {"additional_config": given}) for given in REFUSED])
    for given, refused in zip(REFUSED, found, strict=True):
        code, why = complaint(*_checked(given))
        assert code == 2
        assert f"HostError: {why.removeprefix('layershard: ')}" in refused, given


def test_an_exchange_on_shards_of_the_tokens_is_refused_alike(model):
    given = {"layer_sharding": EXCHANGING} | FLASHCOMM1
    (refused,) = answers(model, [({}, {"additional_config": given, "tensor_parallel_size": 2})])
    code, why = complaint(*_checked(given, tp=2))
    assert code == 2
    assert f"HostError: {why.removeprefix('layershard: ')}" in refused


def test_what_the_plugin_takes_a_check_takes(model):
    given = [({}, {"additional_config": each}) for each in TAKEN]
    assert answers(model, given) == ["accepted"] * len(TAKEN)
    for each in TAKEN:
        assert said(*_checked(each)).startswith("ok: "), each
