"""What is refused of pulls on CUDA says what to do instead, and each of it is then accepted."""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, DENSE, write_config

TRIED = """
import json, os, re, sys
from hosted.cuda import stand_in

stand_in()
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm_layershard.config import KEY
from vllm_layershard.errors import LayerShardError

type(current_platform).is_cumem_allocator_available = lambda self: True  # asks for a library
ONE_NODE = {"data_parallel_size_local": None, "data_parallel_address": None}

def said(model, arguments, options):
    os.environ.pop("NCCL_GRAPH_REGISTER", None)
    given = {name: value for name, value in arguments.items() if value is not None}
    if given.pop("registered", False):
        os.environ["NCCL_GRAPH_REGISTER"] = "1"
    try:
        EngineArgs(
            skip_tokenizer_init=True, model=model,
            additional_config={KEY: {"layers": ["o_proj"], **options}},
            **{"data_parallel_size": 2, **given},
        ).create_engine_config()
    except LayerShardError as error:
        return str(error)
    return "accepted"

def obeyed(remedy, arguments, options):
    changed = dict(re.findall(r"(placement|transport) '([a-z_]+)'", remedy))
    setting = re.search(r"leave (--[a-z-]+) out", remedy)
    if setting is not None:
        return {**arguments, setting[1][2:].replace("-", "_"): None}, options
    if "put all data-parallel ranks on one" in remedy:
        return {**arguments, **ONE_NODE}, options
    if "unset NCCL_GRAPH_REGISTER" in remedy:
        return {**arguments, "registered": None}, options
    assert changed, remedy
    return arguments, {**options, **changed}

result = []
for model, arguments, options in json.loads(sys.argv[1]):
    refusal = said(model, arguments, options)
    remedies = refusal.rpartition("; ")[2].split(", or ")
    tried = [said(model, *obeyed(each, arguments, options)) for each in remedies]
    result.append([refusal, remedies, tried])
"""

STRIPED, PULLED = {"placement": "striped"}, {"transport": "pull"}
NODES = {"data_parallel_size_local": 1, "data_parallel_address": "192.0.2.1"}
CASES = {
    "striped": (CONFIG, {"enable_sleep_mode": True}, STRIPED, 2),
    "striped, asked to pull": (CONFIG, {"enable_sleep_mode": True}, STRIPED | PULLED, 2),
    "asked to pull": (CONFIG, {"enable_sleep_mode": True}, PULLED, 2),
    "replicas": (DENSE, {"enable_sleep_mode": True}, {}, 1),
    "replicas, striped": (DENSE, {"enable_sleep_mode": True}, STRIPED, 1),
    "another allocator, striped": (CONFIG, {"enable_cumem_allocator": True}, STRIPED, 2),
    "nodes": (CONFIG, NODES, PULLED, 2),
    "nodes, striped": (CONFIG, NODES, STRIPED, 2),
    "registered": (CONFIG, {"enable_sleep_mode": True, "registered": True}, {}, 2),
    "registered, another allocator": (
        CONFIG,
        {"enable_cumem_allocator": True, "registered": True},
        {},
        2,
    ),
}
"""The model, vLLM's settings, ours, and how many remedies there are."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict:
    def written(config: dict) -> str:
        return str(write_config(tmp_path_factory.mktemp("model"), config))

    cases = [(written(config), *given) for config, *given, _ in CASES.values()]
    return dict(zip(CASES, run_child(TRIED, json.dumps(cases)), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_each_remedy_is_accepted(case, tried):
    refusal, remedies, found = tried[case]
    assert refusal.startswith("layer_sharding: ")
    assert len(remedies) == CASES[case][3], refusal
    assert dict(zip(remedies, found, strict=True)) == dict.fromkeys(remedies, "accepted")
