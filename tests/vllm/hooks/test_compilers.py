"""What vLLM's compilers are told: another sharding is another graph, and where graphs are cut."""

from __future__ import annotations

import json

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

HASHES = """
import sys, json
from vllm.engine.arg_utils import EngineArgs
model, values = sys.argv[1], json.loads(sys.argv[2])
result = []
for value in values:
    extra = {} if value is None else {"layer_sharding": value}
    config = EngineArgs(
        model=model, data_parallel_size=2, skip_tokenizer_init=True, additional_config=extra
    ).create_engine_config()
    result.append(config.compute_hash())
"""

PIECES = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.settings import check
config = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True,
    additional_config={"layer_sharding": json.loads(sys.argv[2])},
).create_engine_config()
on_cpu = list(config.compilation_config.splitting_ops)
config.device_config.device_type = "cuda"
result = [on_cpu]
for pieces in (["vllm::unified_attention"], []):
    config.compilation_config.splitting_ops = pieces
    check(config)
    check(config)  # a configuration may be checked more than once
    result.append(config.compilation_config.splitting_ops)
"""


def test_the_compile_cache_is_keyed_by_the_sharding(tmp_path):
    """A graph with the two ops must not be taken for one without, nor one name's for another's."""
    model = write_config(tmp_path / "model", CONFIG)
    values = [
        None,
        ["o_proj"],
        ["o_proj"],
        ["q_b_proj"],
        ["o_proj", "q_b_proj"],
        {"layers": ["o_proj"], "layer_stride": 2},
        {"layers": ["o_proj"], "prefetch_step": 2},
        {"layers": ["o_proj"], "keep_first": True},
        {"layers": ["o_proj"], "placement": "replicated"},
        {"layers": ["o_proj"], "move": "activations"},
        {"layers": ["o_proj"], "move": "auto", "move_weights_from": 8},
        {"layers": ["o_proj"], "move": "auto", "move_weights_from": 9},
    ]
    keys = run_child(HASHES, str(model), json.dumps(values))
    assert keys[1] == keys[2]
    assert len(set(keys)) == len(values) - 1


ASKED_BY_VARIABLE = """
import os, sys, json
from vllm.engine.arg_utils import EngineArgs
VARIABLE = "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE"
model, cases = sys.argv[1], json.loads(sys.argv[2])
result = []
for variable, value in cases:
    os.environ[VARIABLE] = variable
    stated = {"layer_sharding": value}
    before = json.dumps(stated)
    config = EngineArgs(
        model=model, tensor_parallel_size=2, skip_tokenizer_init=True, additional_config=stated
    ).create_engine_config()
    key = config.compute_hash()
    config.__post_init__()  # a configuration may be checked more than once
    assert json.dumps(stated) == before, "it is the user's own"
    result.append([key, config.compute_hash(), config.additional_config["layer_sharding"]])
"""


def test_the_compile_cache_knows_of_an_exchange_that_a_variable_asks_for(tmp_path):
    """A graph with an exchange must not be taken for one without, however it was asked for."""
    model = write_config(tmp_path / "model", CONFIG)
    exchange = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}
    options = {"layers": ["o_proj"], "prefetch_step": 2}
    cases = [
        ("0", ["o_proj"]), ("1", ["o_proj"]), ("0", exchange), ("1", exchange),
        ("0", options), ("1", options), ("0", options | exchange),
        ("1", {"layers": ["o_proj"], "token_exchange": []}),
    ]  # fmt: skip
    found = run_child(ASKED_BY_VARIABLE, str(model), json.dumps(cases))
    keys = [key for key, _, _ in found]
    assert [again for _, again, _ in found] == keys
    assert keys[1] == keys[2] == keys[3]
    assert keys[5] == keys[6]
    assert len({keys[0], keys[1], keys[4], keys[5], keys[7]}) == 5
    assert found[1][2] == exchange
    assert [stated for _, _, stated in found[0::4]] == [["o_proj"], options]


def test_a_piecewise_graph_is_cut_at_both_ops_on_a_device(tmp_path):
    """What starts in one captured piece must not be joined in another; a whole graph stays one."""
    model = write_config(tmp_path / "model", CONFIG)
    on_cpu, piecewise, whole = run_child(PIECES, str(model), '["o_proj"]')
    assert not [op for op in on_cpu if "layershard" in op]
    assert piecewise == ["vllm::unified_attention", "layershard::reach", "layershard::wait"]
    assert whole == []


def test_it_is_cut_at_a_linear_whose_tokens_may_move(tmp_path):
    """What is gathered within has another size on every rank: it is captured with no graph."""
    model = write_config(tmp_path / "model", CONFIG)
    moving = {"layers": ["o_proj"], "move": "activations"}
    on_cpu, piecewise, whole = run_child(PIECES, str(model), json.dumps(moving))
    assert not [op for op in on_cpu if "layershard" in op]
    assert piecewise == [
        "vllm::unified_attention",
        "layershard::reach",
        "layershard::wait",
        "layershard::linear",
    ]
    assert whole == []
