"""What is refused in the process that validates the configuration, before any worker starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hosted.child import run_child
from hosted.tiny import CONFIG, DENSE, write_config

VALIDATE = """
import sys, json
from vllm.engine.arg_utils import EngineArgs
result = []
for arguments in json.loads(sys.argv[1]):
    try:
        EngineArgs(**arguments).create_engine_config()
        result.append("accepted")
    except Exception as error:
        result.append(f"{type(error).__name__}: {error}")
"""


def verdicts(model: Path, cases: list[dict]) -> list[str]:
    """One process for all cases: importing vLLM takes longer than the rest."""
    common = {"model": str(model), "data_parallel_size": 2, "skip_tokenizer_init": True}
    return run_child(VALIDATE, json.dumps([common | case for case in cases]))


def sharding(value) -> dict:
    return {"additional_config": {"layer_sharding": value}}


O_PROJ = sharding(["o_proj"])

CASES = {
    "accepted": O_PROJ,
    "must be a list of names or an object": sharding("o_proj"),
    "unknown key; the known ones are": sharding({"layers": ["o_proj"], "prefetch": 1}),
    "name at least one linear": sharding([]),
    "'o_proj' stands there more than once": sharding(["o_proj", "o_proj"]),
    "'self_attn.o_proj' is already matched by 'o_proj'": sharding(["o_proj", "self_attn.o_proj"]),
    "prefetch_step = -1: ": sharding({"layers": ["o_proj"], "prefetch_step": -1}),
    "prefetch_step = 1.5: ": sharding({"layers": ["o_proj"], "prefetch_step": 1.5}),
    "prefetch_step = 65: ": sharding({"layers": ["o_proj"], "prefetch_step": 65}),
    "'kv_b_proj' may not be sharded": sharding(["kv_b_proj"]),
    "'linear_attn.conv1d' may not be sharded": sharding(["linear_attn.conv1d"]),
    "'gate.classifier' may not be sharded": sharding(["gate.classifier"]),
    "'mlp.gate' may not be sharded": sharding(["mlp.gate"]),
    "'lm_head' may not be sharded": sharding(["lm_head"]),
    "'embed_tokens' may not be sharded": sharding(["embed_tokens"]),
    "'mlp.experts' may not be sharded": sharding(["mlp.experts"]),
    "report_dir = ": sharding({"layers": ["o_proj"], "report_dir": __file__}),
    "report_dir = '/proc/nope': cannot be written": sharding(
        {"layers": ["o_proj"], "report_dir": "/proc/nope"}
    ),
    "a group of one rank": O_PROJ | {"data_parallel_size": 1},
    "load format 'sharded_state'": O_PROJ | {"load_format": "sharded_state"},
    "quantization 'fp8_per_tensor' quantises": O_PROJ | {"quantization": "fp8_per_tensor"},
}


def test_bad_values_are_refused_with_one_message_and_good_ones_pass(tmp_path):
    model = write_config(tmp_path / "model", CONFIG)
    found = verdicts(model, list(CASES.values()))
    for expected, verdict in zip(CASES, found, strict=True):
        assert expected in verdict, f"{expected!r} is not in {verdict!r}"
        assert "\n" not in verdict


def test_vllm_has_no_context_parallelism_here_sharded_or_not(tmp_path):
    """Hence its groups on plain modules, in tests/ranks/test_layouts.py."""
    model = write_config(tmp_path / "model", CONFIG)
    pcp = {"prefill_context_parallel_size": 2, "data_parallel_size": 1}
    plain, sharded = verdicts(model, [pcp, O_PROJ | pcp])
    assert "Model Runner V1 does not support: prefill context parallel" in plain
    assert "Model Runner V1 does not support: prefill context parallel" in sharded


def test_vllm_has_no_sleep_mode_here_sharded_or_not(tmp_path):
    """Hence the runtime's sleep on plain modules, in tests/ranks/test_manual.py."""
    model = write_config(tmp_path / "model", CONFIG)
    plain, sharded = verdicts(
        model, [{"enable_sleep_mode": True}, O_PROJ | {"enable_sleep_mode": True}]
    )
    assert "Sleep mode is not supported on current platform" in plain
    assert sharded == plain


QUANTISED = {
    "compressed-tensors": {
        "format": "pack-quantized",
        "config_groups": {
            "all": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
            }
        },
        "ignore": [],
    },
    "gptq": {"bits": 4, "group_size": 32, "desc_act": False, "sym": True},
}


def test_quantised_checkpoints_are_judged_by_what_their_processing_leaves(tmp_path):
    cases = [
        O_PROJ | {"model": str(write_config(tmp_path / name, CONFIG | of_method(name, quantised)))}
        for name, quantised in QUANTISED.items()
    ]
    assert verdicts(tmp_path, cases) == ["accepted", "accepted"]


def of_method(name: str, quantised: dict) -> dict:
    return {"quantization_config": {"quant_method": name} | quantised}


DENSE_CASES = {
    "accepted": O_PROJ,
    "engines of their own": sharding({"layers": ["o_proj"], "transport": "broadcast"}),
    "its ranks would be on several nodes, and weights are pulled within one node only": O_PROJ
    | {
        "data_parallel_size_local": 1,
        "data_parallel_start_rank": 0,
        "data_parallel_hybrid_lb": True,
        "data_parallel_address": "192.0.2.1",
    },
}


def test_replicas_of_a_dense_model_are_served_on_one_node_and_by_pulls(tmp_path):
    model = write_config(tmp_path / "model", DENSE)
    for expected, verdict in zip(
        DENSE_CASES, verdicts(model, list(DENSE_CASES.values())), strict=True
    ):
        assert expected in verdict, f"{expected!r} is not in {verdict!r}"


ACROSS = {
    "data_parallel_size": 1,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "nnodes": 2,
    "node_rank": 0,
    "master_addr": "192.0.2.1",
}
"""Each stage on a node of its own: ranks that share are on one node, the deployment on two."""


def test_a_server_of_several_nodes_does_not_pull_though_each_group_is_on_one(tmp_path):
    """As the planner: tests/pure/runtime/test_pull.py."""
    whole = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}
    pulls = [
        {"transport": "pull"},
        {"placement": "striped"},
        {"placement": "replicated", "transport": "pull"},
    ]
    cases = [sharding(whole | options) | ACROSS for options in ({}, *pulls)]
    model = write_config(tmp_path / "model", DENSE)
    broadcast, *refused = verdicts(model, cases)
    assert broadcast == "accepted"
    for verdict in refused:
        assert "its ranks would be on several nodes" in verdict


LAUNCHES = """
import sys, json, pickle
from dataclasses import asdict
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.deployment import deployment_of
from vllm_layershard.hosts.settings import layout_of, requested
result = []
for arguments in json.loads(sys.argv[1]):
    whole = EngineArgs(**arguments).create_engine_config()
    seen = {"hash": whole.compute_hash(), "engines": []}
    for index in (0, 1):
        config = pickle.loads(pickle.dumps(whole))
        config.parallel_config.data_parallel_index = index
        config.parallel_config.reconfigure_for_independent_dp_rank()
        config.__post_init__()  # as after the engine's handshake
        layout = layout_of(config, requested(config))
        seen["engines"].append([deployment_of(config), layout.dp, layout.in_lockstep])
    result.append(seen)
"""


def test_each_engine_of_a_dense_model_knows_how_many_there_are_and_where_they_meet(tmp_path):
    model = write_config(tmp_path / "model", DENSE)
    common = O_PROJ | {
        "model": str(model),
        "data_parallel_size": 2,
        "skip_tokenizer_init": True,
    }
    apart = {"data_parallel_size_local": 1, "data_parallel_hybrid_lb": True}
    launches = [
        common,
        common,
        *(
            common | apart | {"data_parallel_start_rank": rank, "data_parallel_rpc_port": port}
            for rank, port in ((0, 1234), (1, 1234), (0, 1235))
        ),
    ]
    found = run_child(LAUNCHES, json.dumps(launches))
    names = [{name for name, _, _ in seen["engines"]} for seen in found]
    assert all(len(each) == 1 for each in names), "engines of one launch meet under one name"
    assert names[0] != names[1], "two launches do not meet"
    assert names[2] == names[3] != names[4], "servers started apart meet where they were told to"
    assert all(engine[1:] == [2, False] for seen in found for engine in seen["engines"])
    assert found[0]["hash"] == found[1]["hash"], "the compile cache serves every launch"


def serve(*arguments: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("vllm")
    return subprocess.run(
        [str(script), "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_the_real_server_stops_before_a_worker_starts(tmp_path):
    model = write_config(tmp_path / "model", CONFIG)
    value = json.dumps({"layer_sharding": {"layers": ["o_proj"], "prefetch_step": -1}})
    finished = serve(
        str(model), "--data-parallel-size", "2", "--skip-tokenizer-init",
        "--additional-config", value,
    )  # fmt: skip
    assert finished.returncode != 0
    output = finished.stdout + finished.stderr
    assert output.strip().splitlines()[-1] == (
        "vllm_layershard.errors.ConfigError: layer_sharding.prefetch_step = -1: should be greater "
        "than or equal to 0; give a whole number from 0 to 64"
    )
    assert "EngineCore" not in output
    assert "Worker" not in output
