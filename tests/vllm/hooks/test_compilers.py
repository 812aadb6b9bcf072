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
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.settings import check
config = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True,
    additional_config={"layer_sharding": ["o_proj"]},
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
    ]
    keys = run_child(HASHES, str(model), json.dumps(values))
    assert keys[1] == keys[2]
    assert len(set(keys)) == len(values) - 1


def test_a_piecewise_graph_is_cut_at_both_ops_on_a_device(tmp_path):
    """What starts in one captured piece must not be joined in another; a whole graph stays one."""
    model = write_config(tmp_path / "model", CONFIG)
    on_cpu, piecewise, whole = run_child(PIECES, str(model))
    assert not [op for op in on_cpu if "layershard" in op]
    assert piecewise == ["vllm::unified_attention", "layershard::reach", "layershard::wait"]
    assert whole == []
