"""How a token exchange is asked for, and what it cannot stand beside: before any worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, DENSE, write_config

VARIABLE = "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE"

ASKED = """
import json, os, sys
from types import ModuleType
from vllm.engine.arg_utils import EngineArgs
import vllm_layershard.hosts.exchange.command as command
from vllm_layershard.hosts.settings import requested

said = []
for level in ("info_once", "warning_once"):
    setattr(command.logger, level, lambda text, *values: said.append(text % values))

def flashcomm2_enable():
    '''As vllm-ascend 0.23 has it (utils.py), whose variables have integer values.'''
    return int(os.environ.get("VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE", "0")) > 0

result = []
for environment, ascend, arguments in json.loads(sys.argv[1]):
    os.environ.update(environment)
    if ascend:
        sys.modules["vllm_ascend.utils"] = ModuleType("vllm_ascend.utils")
        sys.modules["vllm_ascend.utils"].flashcomm2_enable = flashcomm2_enable
    said.clear()
    try:
        config = EngineArgs(**arguments).create_engine_config()
        found = requested(config)
        result.append([list(found.token_exchange), sorted(set(said))])
    except Exception as error:
        result.append([type(error).__name__, str(error)])
    for name in environment:
        del os.environ[name]
    sys.modules.pop("vllm_ascend.utils", None)
"""


def answers(model: Path, cases: list[tuple[dict[str, str], bool, dict[str, Any]]]) -> list[Any]:
    """What each case is answered with, in one process: importing vLLM takes longer than the rest.

    A case is its environment, whether vllm-ascend has FlashComm2 there, and its arguments.
    """
    common = {"model": str(model), "tensor_parallel_size": 2, "skip_tokenizer_init": True}
    found: list[Any] = run_child(
        ASKED, json.dumps([(env, own, common | arguments) for env, own, arguments in cases])
    )
    return found


def sharding(value: Any) -> dict[str, Any]:
    return {"additional_config": {"layer_sharding": value}}


def on(value: str) -> dict[str, str]:
    return {VARIABLE: value}


PUBLISHED = sharding(["o_proj"])
EXPLICIT = {"layers": ["o_proj", "qkv_proj"], "token_exchange": ["o_proj"]}

ASKED_FOR = {
    "unset": (({}, False, PUBLISHED), []),
    "off": ((on("0"), False, PUBLISHED), []),
    "on": ((on("1"), False, PUBLISHED), ["o_proj"]),
    "with spaces": ((on(" 1 "), False, PUBLISHED), ["o_proj"]),
    "with options": (
        (on("1"), False, sharding({"layers": ["o_proj"], "prefetch_step": 2})),
        ["o_proj"],
    ),
    "explicit": (({}, False, sharding(EXPLICIT)), ["o_proj"]),
    "explicit beside it": ((on("1"), False, sharding(EXPLICIT)), ["o_proj"]),
    "both alike": (
        (on("1"), False, sharding({"layers": ["o_proj"], "token_exchange": ["o_proj"]})),
        ["o_proj"],
    ),
    "explicitly none": (
        (on("1"), False, sharding({"layers": ["o_proj"], "token_exchange": []})),
        [],
    ),
    "one tensor-parallel rank": (
        (on("1"), False, PUBLISHED | {"tensor_parallel_size": 1, "data_parallel_size": 2}),
        [],
    ),
    "the host's own, off": (({}, True, sharding(EXPLICIT)), ["o_proj"]),
}  # fmt: skip

SAID = {
    "on": "the 2 tensor-parallel ranks exchange tokens before o_proj, which is whole on each",
    "with spaces": "on each of them and sharded over all (layer_sharding.token_exchange)",
    "with options": "on each of them and sharded over all (layer_sharding.token_exchange)",
    "explicit beside it": "token_exchange stands: " + VARIABLE + " is not read",
    "explicitly none": "token_exchange stands: " + VARIABLE + " is not read",
    "one tensor-parallel rank": "without tensor parallelism there is nothing to exchange",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("exchange") / "model", CONFIG)


def test_the_published_command_asks_for_the_exchange_and_the_key_wins(model):
    found = answers(model, [case for case, _ in ASKED_FOR.values()])
    for (name, (_, exchanged)), answer in zip(ASKED_FOR.items(), found, strict=True):
        assert answer[0] == exchanged, (name, answer)
        told = [SAID.get(name, "nothing") in line for line in answer[1]]
        assert told == [True] * (name in SAID), (name, answer)


REFUSED = {
    "ConfigError: VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE = '2': should be 1": (
        on("2"), False, PUBLISHED,
    ),
    "ConfigError: VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE = 'on': should be 1": (
        on("on"), False, PUBLISHED,
    ),
    "ConfigError: VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE = '': should be 1": (
        on(""), False, PUBLISHED,
    ),
    'ConfigError: VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE = 1: needs {"layer_sharding": ["o_proj"]}': (
        on("1"), False, sharding(["o_proj", "q_b_proj"]),
    ),
    "HostError: layer_sharding: this vllm-ascend exchanges tokens before o_proj itself": (
        on("1"), True, PUBLISHED,
    ),
    "PlanError: layer_sharding.token_exchange: without tensor parallelism": (
        {}, False, sharding(EXPLICIT) | {"tensor_parallel_size": 1, "data_parallel_size": 2},
    ),
    "HostError: layer_sharding.token_exchange: an adapter's weights are split": (
        {}, False, sharding(EXPLICIT) | {"enable_lora": True},
    ),
    "HostError: layer_sharding.token_exchange: with sequence parallelism of routed experts": (
        {}, False, sharding(EXPLICIT) | {"data_parallel_size": 2, "enable_expert_parallel": True},
    ),
    "HostError: layer_sharding.token_exchange: with VLLM_ASCEND_ENABLE_FLASHCOMM1": (
        {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}, False, sharding(EXPLICIT),
    ),
    "HostError: layer_sharding.token_exchange: with enable_flashcomm1": (
        {}, False,
        {"additional_config": {"layer_sharding": EXPLICIT, "enable_flashcomm1": True}},
    ),
    "HostError: layer_sharding: finegrained_tp_config.oproj_tensor_parallel_size = 2 splits": (
        {}, False,
        {
            "additional_config": {
                "layer_sharding": ["o_proj"],
                "finegrained_tp_config": {"oproj_tensor_parallel_size": 2},
            }
        },
    ),
    "HostError: layer_sharding: finegrained_tp_config.mlp_tensor_parallel_size = 2 splits": (
        {}, False,
        {
            "additional_config": {
                "layer_sharding": ["mlp.down_proj"],
                "finegrained_tp_config": {"mlp_tensor_parallel_size": 2},
            }
        },
    ),
}  # fmt: skip


def test_what_an_exchange_cannot_stand_beside_is_refused_in_one_line(model):
    found = answers(model, list(REFUSED.values()))
    for expected, (name, message) in zip(REFUSED, found, strict=True):
        assert f"{name}: {message}".startswith(expected), f"{expected!r}: {name}: {message!r}"
        assert "\n" not in message


def test_a_dense_model_is_refused_no_sequence_parallelism(tmp_path):
    """Which vLLM has for models with routed experts alone."""
    model = write_config(tmp_path / "model", DENSE)
    fine = sharding(EXPLICIT) | {"enable_lora": False}
    beside = {"finegrained_tp_config": {"mlp_tensor_parallel_size": 2}}
    other = {"additional_config": {"layer_sharding": EXPLICIT} | beside}
    assert answers(model, [({}, False, fine), ({}, False, other)]) == [[["o_proj"], []]] * 2
