"""What vLLM's other settings exclude: each is refused by name, and everything else passes."""

from __future__ import annotations

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

CHECKED = """
import sys
from contextlib import contextmanager
from typing import get_args
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import LoadFormats
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.settings import check
config = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True,
    additional_config={"layer_sharding": ["o_proj"]},
).create_engine_config()
parallel, offload, load = config.parallel_config, config.offload_config, config.load_config
model = config.model_config

def verdict(owner, attribute, value):
    before = getattr(owner, attribute, None)
    object.__setattr__(owner, attribute, value)  # vLLM itself refuses some of them on this platform
    try:
        check(config)
        return "accepted"
    except HostError as error:
        return str(error)
    finally:
        object.__setattr__(owner, attribute, before)

def asleep(backend):
    model.sleep_mode_backend, before = backend, model.sleep_mode_backend
    try:
        return verdict(model, "enable_sleep_mode", True)
    finally:
        model.sleep_mode_backend = before

def pulling(owner, attribute, value):
    config.additional_config = {"layer_sharding": {"layers": ["o_proj"], "transport": "pull"}}
    parallel.data_parallel_master_ip = "192.0.2.1"
    try:
        return [verdict(parallel, "enable_dbo", False), verdict(owner, attribute, value)]
    finally:
        config.additional_config = {"layer_sharding": ["o_proj"]}

result = {
    "nothing": verdict(parallel, "enable_dbo", False),
    "dual batch overlap (--enable-dbo)": verdict(parallel, "enable_dbo", True),
    "elastic expert parallelism": verdict(parallel, "enable_elastic_ep", True),
    "fault tolerance (--enable-fault-tolerance)": verdict(parallel, "enable_fault_tolerance", True),
    "the decoder replay of DeepSeek-V4.1 (--no-swa-bounded-replay turns it off)": verdict(
        model.hf_config, "kv_source_layer_ids", [1, 3]
    ),
    "weight offloading (--cpu-offload-gb)": verdict(offload.uva, "cpu_offload_gb", 1.0),
    "weight offloading (--offload-group-size)": verdict(
        offload.prefetch, "offload_group_size", 4
    ),
    "weight transfer (--weight-transfer-config)": verdict(
        config, "weight_transfer_config", WeightTransferConfig()
    ),
    "sleep mode by a plugin's backend (--sleep-mode-backend)": asleep("criu"),
    "slept": asleep("cumem"),
    "sleep": pulling(model, "enable_sleep_mode", True),
    "allocator": pulling(model, "enable_cumem_allocator", True),
    "other nodes": pulling(parallel, "data_parallel_size_local", 1),
    "formats": {name: verdict(load, "load_format", name) for name in get_args(LoadFormats)},
}
"""

SERVED = {"auto", "hf", "safetensors", "pt", "npcache", "dummy", "mistral"}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict:
    return run_child(CHECKED, str(write_config(tmp_path_factory.mktemp("model"), CONFIG)))


def test_settings_that_break_the_lockstep_or_move_the_weights_themselves(verdicts):
    assert verdicts["nothing"] == verdicts["slept"] == "accepted"
    excluded = verdicts.keys() - {"nothing", "slept", "sleep", "allocator", "other nodes"}
    excluded -= {"formats"}
    assert len(excluded) == 8
    for setting in excluded:
        said = verdicts[setting]
        expected = f"layer_sharding: cannot be combined with {setting}; use one of the two"
        assert said == expected


def test_what_a_pull_cannot_reach(verdicts):
    for case, reason in (
        ("sleep", "with --enable-sleep-mode weights are in memory that no other process can map"),
        ("allocator", "with --enable-cumem-allocator weights are in memory that no other process"),
        ("other nodes", "its ranks would be on several nodes"),
    ):
        without, said = verdicts[case]
        assert without == "accepted"
        assert said.startswith(f"layer_sharding: {reason}")
        assert said.endswith("use transport 'broadcast'")


def test_every_load_format_of_vllm_is_served_or_refused_by_name(verdicts):
    formats = verdicts["formats"]
    assert {"sharded_state", "tensorizer", "runai_streamer_sharded", "ipc_cache"} <= formats.keys()
    for name, said in formats.items():
        if name in SERVED:
            assert said == "accepted"
        else:
            assert said.startswith(f"layer_sharding: load format {name!r} does not load through")


MIN_LATENCY = """
import tempfile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.sharded_linear import check_linear
with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as scratch:
    init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
    initialize_model_parallel()
    linear = ReplicatedLinear(8, 8, bias=False, prefix="model.layers.0.fused_qkv_a_proj")
check_linear(linear)
linear._use_min_latency_gemm = True  # as DeepSeek's fused_qkv_a_proj decides on some GPUs
try:
    check_linear(linear)
    result = "accepted"
except HostError as error:
    result = str(error)
"""


DSA_CP = """
import sys, tempfile
from types import ModuleType
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.sharded_linear import check_linear
with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as scratch:
    init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
    initialize_model_parallel()
    prefix = "model.layers.3.self_attn"
    linears = [
        RowParallelLinear(8, 8, prefix=f"{prefix}.o_proj"),
        ColumnParallelLinear(8, 8, tp_rank=0, tp_size=1, prefix=f"{prefix}.q_b_proj"),
    ]
ascend = ModuleType("vllm_ascend.utils")
result = []
for on in (None, False, True, "renamed", "moved"):
    if on is not None:  # there is a vllm-ascend
        sys.modules["vllm_ascend"] = ModuleType("vllm_ascend")
        sys.modules["vllm_ascend.utils"] = ascend
        ascend.enable_dsa_cp = lambda: on
    if on == "renamed":
        del ascend.enable_dsa_cp
    if on == "moved":
        del sys.modules["vllm_ascend.utils"]
    for linear in linears:
        try:
            result.append(check_linear(linear))
        except HostError as error:
            result.append(str(error))
"""


def test_the_o_proj_that_vllm_ascend_gathers_is_refused_and_its_q_b_proj_is_not():
    """DSA-CP keeps the weight from when it was loaded, when a slot held nothing yet."""
    found = run_child(DSA_CP)
    assert found[:4] == [None] * 4
    refused, queries, renamed, _, moved, _ = found[4:]
    assert queries is None
    assert renamed == moved
    assert renamed.startswith("vllm_ascend has no vllm_ascend.utils.enable_dsa_cp: ")
    assert refused == (
        "layer_sharding: model.layers.3.self_attn.o_proj is gathered by vllm-ascend itself "
        "(DSA-CP), from the weight as it was loaded, and would be gathered from another layer's; "
        "leave o_proj out (q_b_proj is whole there and can be shared)"
    )


def test_a_linear_with_the_min_latency_gemm_is_refused_by_name():
    assert "fused_qkv_a_proj uses vLLM's min-latency GEMM" in run_child(MIN_LATENCY)


PREPARED = """
from types import SimpleNamespace
from torch import nn
from vllm_layershard.hosts.reload.process_checkpoints import refuse_checkpoints

shared, other = nn.Linear(1, 1), nn.Linear(1, 1)
refuse_checkpoints(shared)
from vllm.v1.worker import gpu_worker  # only now: nobody else imports it here

prepared = []
gpu_worker.checkpoint_prepare_distributed_state = lambda: prepared.append("vLLM's own")
result = []
for model in (other, shared):
    worker = object.__new__(gpu_worker.Worker)  # it would ask for a device
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    try:
        result.append(worker.checkpoint_prepare())
    except Exception as error:
        result.append(f"{type(error).__name__}: {error}")
    result.append(len(prepared))
"""


def test_a_process_with_a_sharded_model_is_not_made_ready_and_any_other_is():
    other, prepared, said, still = run_child(PREPARED)
    assert (other, prepared) == (None, 1)
    assert said == (
        "HostError: a checkpoint of this worker's process (checkpoint_prepare) would hold neither "
        "the communicators nor the memory of other ranks by which its layers are shared; leave out "
        "layer_sharding and denseffn_tensor_parallel_size, or start the server anew instead of "
        "restoring it"
    )
    assert still == 1, "and nothing of vLLM's is made ready before"


ALONE = """
import sys
from vllm.entrypoints.cli.snapshot import validate_create_args
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
result = []
for flags in ([], ["-tp", "2"], ["-dp", "2"], ["-pp", "2"]):
    key = ["--additional-config", '{"layer_sharding": ["o_proj"]}']
    args = parser.parse_args(["--model", "org/model", "--revision", 40 * "0", *key, *flags])
    try:
        result.append(validate_create_args(args))
    except ValueError as error:
        result.append(str(error))
"""


def test_vllm_makes_snapshots_of_one_rank_alone_which_has_nobody_to_share_with():
    one, *several = run_child(ALONE)
    assert one is None
    for said, what in zip(several, ("tensor", "data", "pipeline"), strict=True):
        assert said == f"snapshot create currently requires {what} parallel size 1"
