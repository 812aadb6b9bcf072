"""What forwards that move tokens cannot stand beside, before any worker; and what they can."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hosted.asked import answers as answers_of
from hosted.child import run_child
from hosted.tiny import CONFIG, DENSE, write_config

AUTO = {"layers": ["o_proj"], "move": "auto", "move_weights_from": 8}


def asking(**options: Any) -> dict[str, Any]:
    return {"additional_config": {"layer_sharding": AUTO | options}}


answers = partial(answers_of, data_parallel_size=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("moves") / "model", CONFIG)


TAKEN = [
    asking(),
    asking(keep_first=True),
    asking(transport="pull"),
    asking(placement="replicated"),
    asking(placement="striped"),
    asking(placement="striped", keep_first=True),
    asking() | {"tensor_parallel_size": 2},
    asking() | {"tensor_parallel_size": 2, "data_parallel_size": 1},
    asking() | {"pipeline_parallel_size": 2},
    asking() | {"enable_lora": True},
    {"additional_config": {"layer_sharding": ["o_proj"]}, "kv_sharing_fast_prefill": True},
]

ON_SHARDS = "linears run on shards of the tokens, whose numbers the ranks do not tell each other"
ASKED_FOR = "layer_sharding.move = 'auto'"
REFUSED = {
    f"ConfigError: {ASKED_FOR}: token_exchange moves the tokens of 'o_proj' already": (
        {}, asking(token_exchange=["o_proj"]) | {"tensor_parallel_size": 2},
    ),
    f"HostError: {ASKED_FOR}: with sequence parallelism of routed experts": (
        {}, asking() | {"tensor_parallel_size": 2, "enable_expert_parallel": True},
    ),
    f"HostError: {ASKED_FOR}: with --kv-sharing-fast-prefill the last layers run on fewer": (
        {}, asking() | {"kv_sharing_fast_prefill": True},
    ),
    f"HostError: {ASKED_FOR}: with VLLM_ASCEND_ENABLE_FLASHCOMM1 {ON_SHARDS}": (
        {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}, asking(),
    ),
    f"HostError: {ASKED_FOR}: with enable_flashcomm1 {ON_SHARDS}": (
        {}, {"additional_config": {"layer_sharding": AUTO, "enable_flashcomm1": True}},
    ),
}  # fmt: skip


def test_what_tokens_cannot_move_beside_is_refused_in_one_line_and_the_rest_is_taken(model):
    assert answers(model, [({}, case) for case in TAKEN]) == ["accepted"] * len(TAKEN)
    for expected, said in zip(REFUSED, answers(model, list(REFUSED.values())), strict=True):
        assert expected in said, f"{expected!r} is not in {said!r}"
        assert "\n" not in said


def test_replicas_of_a_dense_model_are_refused_and_its_tensor_parallel_ranks_taken(tmp_path):
    dense = write_config(tmp_path / "dense", DENSE)
    engines, one = answers(
        dense,
        [({}, asking()), ({}, asking() | {"tensor_parallel_size": 2, "data_parallel_size": 1})],
    )
    assert f"PlanError: {ASKED_FOR}: the 2 data-parallel ranks of a dense model" in engines
    assert one == "accepted"


SET = """
import os, sys
from types import SimpleNamespace
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.settings import check

result = []
for dp, tp in ((2, 1), (1, 2)):
    config = EngineArgs(
        model=sys.argv[1], data_parallel_size=dp, tensor_parallel_size=tp, skip_tokenizer_init=True,
        additional_config={
            "layer_sharding": {"layers": ["kv_a_proj_with_mqa"], "move": "activations"}
        },
    ).create_engine_config()

    def verdict(owner, attribute, value):
        former = getattr(owner, attribute)
        setattr(owner, attribute, value)
        try:
            return check(config)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            setattr(owner, attribute, former)

    result.append([
        verdict(config.parallel_config, "prefill_context_parallel_size", 2),
        verdict(config.device_config, "device_type", "npu"),
    ])
os.environ["VLLM_LORA_ENABLE_DUAL_STREAM"] = "1"
result.append([verdict(config, "lora_config", value) for value in (None, SimpleNamespace())])
"""


def test_what_no_cpu_can_be_asked_for_is_refused_where_it_is_set(model):
    (context, dummies), (_, together), (alone, adapted) = run_child(SET, str(model))
    asked = "layer_sharding.move = 'activations'"
    assert f"PlanError: {asked}: prefill-context-parallel ranks have token counts" in context
    assert f"HostError: {asked}: vllm-ascend's dummy batches leave out attention's" in dummies
    assert together is alone is None
    assert f"HostError: {asked}: with VLLM_LORA_ENABLE_DUAL_STREAM a linear with" in adapted
