"""How dense MLPs are asked to be split, and what that cannot stand beside: before any worker."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hosted.asked import answers as answers_of
from hosted.child import run_child
from hosted.tiny import CONFIG, DENSE, write_config

KEY = "denseffn_tensor_parallel_size"


answers = partial(answers_of, data_parallel_size=4)


def asking(size: Any, **beside: Any) -> dict[str, Any]:
    return {"additional_config": {KEY: size, **beside}}


VALUES = {
    "accepted": asking(2),
    f"ConfigError: {KEY} = '2': should be a valid integer; give how many": asking("2"),
    f"ConfigError: {KEY} = 2.0: should be a valid integer; give how many": asking(2.0),
    f"ConfigError: {KEY} = true: should be a valid integer; give how many": asking(True),
    f"ConfigError: {KEY} = null: should be a valid integer; give how many": asking(None),
    f"ConfigError: {KEY} = [2]: should be a valid integer; give how many": asking([2]),
    f"ConfigError: {KEY} = 0: should be greater than or equal to 1; give how many": asking(0),
    f"ConfigError: {KEY} = -2: should be greater than or equal to 1; give how many": asking(-2),
    f"PlanError: {KEY} = 3: does not divide the 4 data-parallel ranks; choose one of 2, 4": (
        asking(3)
    ),
    f"PlanError: {KEY} = 8: does not divide the 4 data-parallel ranks": asking(8),
    f"PlanError: {KEY} = 2: there is one data-parallel rank, and nobody": (
        asking(2) | {"data_parallel_size": 1}
    ),
}

TAKEN = [
    asking(1),
    asking(4),
    asking(2, layer_sharding=["o_proj"]),
    asking(1, layer_sharding=["o_proj"]),
    asking(2) | {"pipeline_parallel_size": 2},
    asking(1) | {"data_parallel_size": 1, "enable_lora": True},
]

EXCLUDED = {
    "sequence parallelism of routed experts (--enable-expert-parallel with tensor and data": (
        {}, {"tensor_parallel_size": 2, "enable_expert_parallel": True},
    ),
    "LoRA (--enable-lora): an adapter of a dense MLP would be split as": (
        {}, {"enable_lora": True},
    ),
    "weight offloading (--cpu-offload-gb): the weights would move twice": (
        {}, {"cpu_offload_gb": 1},
    ),
    "--kv-sharing-fast-prefill: the last layers run on fewer tokens": (
        {}, {"kv_sharing_fast_prefill": True},
    ),
    "VLLM_ASCEND_ENABLE_FLASHCOMM1: tokens are on shards there": (
        {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}, {},
    ),
    "enable_flashcomm1: tokens are on shards there": (
        {}, asking(2, enable_flashcomm1=True),
    ),
    "finegrained_tp_config.mlp_tensor_parallel_size = 4: both would split the same MLPs": (
        {}, asking(2, finegrained_tp_config={"mlp_tensor_parallel_size": 4}),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("ffn") / "model", CONFIG)


def test_a_bad_value_is_refused_in_one_line_and_a_good_one_is_taken(model):
    found = answers(model, [({}, case) for case in VALUES.values()])
    for expected, said in zip(VALUES, found, strict=True):
        assert expected in said, f"{expected!r} is not in {said!r}"
        assert "\n" not in said
    assert answers(model, [({}, case) for case in TAKEN]) == ["accepted"] * len(TAKEN)


def test_what_it_cannot_stand_beside_is_refused_in_one_line(model):
    cases = [(env, asking(2) | own) for env, own in EXCLUDED.values()]
    for setting, said in zip(EXCLUDED, answers(model, cases), strict=True):
        assert f"HostError: {KEY}: cannot be combined with {setting}" in said, said
        assert said.endswith("use one of the two")
        assert "\n" not in said


SET = """
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.ffn.settings import check_ffn

config = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True,
    additional_config={"denseffn_tensor_parallel_size": 2},
).create_engine_config()

def verdict(owner, attribute, value):
    former = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        return check_ffn(config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        setattr(owner, attribute, former)

parallel = config.parallel_config
result = [
    verdict(parallel, "enable_elastic_ep", False),
    verdict(parallel, "enable_elastic_ep", True),
    verdict(parallel, "enable_dbo", True),
    verdict(parallel, "enable_fault_tolerance", True),
    verdict(config.offload_config.prefetch, "offload_group_size", 4),
    verdict(parallel, "prefill_context_parallel_size", 2),
]
"""


def test_what_no_cpu_can_be_asked_for_is_refused_where_it_is_set(model):
    nothing, elastic, overlap, tolerant, offload, context = run_child(SET, str(model))
    assert nothing is None
    combined = f"HostError: {KEY}: cannot be combined with"
    assert elastic == (
        f"{combined} elastic expert parallelism: its ranks come and go; use one of the two"
    )
    assert f"{combined} dual batch overlap (--enable-dbo): two forwards at a time" in overlap
    assert f"{combined} fault tolerance (--enable-fault-tolerance): ranks leave" in tolerant
    assert f"{combined} weight offloading (--offload-group-size): the weights" in offload
    assert f"PlanError: {KEY} = 2: prefill-context-parallel ranks have token counts" in context


def test_a_dense_model_and_a_load_format_of_its_own_are_refused(model, tmp_path):
    dense = str(write_config(tmp_path / "dense", DENSE))
    cases = [
        ({}, asking(2) | {"model": dense}),
        ({}, asking(2) | {"load_format": "sharded_state"}),
    ]
    engines, loading = answers(model, cases)
    assert f"PlanError: {KEY} = 2: the 4 data-parallel ranks of a dense model are engines" in (
        engines
    )
    assert f"HostError: {KEY}: load format 'sharded_state' does not load" in loading


FOUND = """
import torch, json
from torch import nn
import tempfile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.activation import SiluAndMul, GeluAndMul
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear,
)
from vllm_layershard.errors import LayerShardError
from vllm_layershard.hosts.ffn.mlps import check_mlp, dense_mlps

class Gated(nn.Module):
    def __init__(self, prefix, act=SiluAndMul, bias=False, **down):
        super().__init__()
        self.up = MergedColumnParallelLinear(8, [16, 16], bias=bias, prefix=f"{prefix}.up")
        self.down = RowParallelLinear(16, 8, bias=bias, prefix=f"{prefix}.down", **down)
        self.act = act()

class Weighed(Gated):
    '''As Qwen's shared experts: a gate of their own.'''
    def __init__(self, prefix):
        super().__init__(prefix)
        self.expert_gate = ReplicatedLinear(8, 1, bias=False, prefix=f"{prefix}.gate")

class Experts(nn.Module):
    '''Routed experts, as far as anybody can tell: a module of vLLM's package of them.'''
    def __init__(self, prefix=""):
        super().__init__()
Experts.__module__ = "vllm.model_executor.layers.fused_moe.layer"

class Routed(nn.Module):
    def __init__(self, prefix):
        super().__init__()
        self.shared = Gated(f"{prefix}.shared")
        self.experts = Experts()

class Layer(nn.Module):
    def __init__(self, prefix, *kinds):
        super().__init__()
        for name, kind in kinds:
            setattr(self, name, kind(f"{prefix}.{name}"))

class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

class SeesAndSpeaks(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.eyes = Model([Layer("eyes.layers.0", ("mlp", Gated))])
        self.language_model = Model(layers)
    def get_language_model(self):
        return self.language_model

def said(path, module):
    from vllm_layershard.hosts.ffn.mlps import DenseMlp
    try:
        check_mlp(DenseMlp(path, module, module.up, module.down))
    except LayerShardError as error:
        return str(error)
    return "taken"

result = {}
with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as scratch:
    init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
    initialize_model_parallel()
    layers = [
        Layer("layers.0", ("ffn", Gated)),
        Layer("layers.1", ("mlp", Routed)),
        Layer("layers.2", ("experts", Experts), ("mlp", Gated)),
        Layer("layers.3", ("mlp", Weighed)),
        Layer("layers.4", ("first", Gated), ("second", Gated)),
        Layer("layers.5", ("mlp", Gated)),
    ]
    result["found"] = [mlp.path for mlp in dense_mlps(SeesAndSpeaks(layers), num_layers=5)]
    class Other(nn.Module): pass
    class Own(RowParallelLinear): pass
    result["said"] = [
        said("a", Gated("a")),
        said("b", Gated("b", act=GeluAndMul)),
        said("c", Gated("c", act=Other)),
        said("d", Gated("d", bias=True)),
        said("e", Gated("e", reduce_results=False)),
        said("f", Gated("f", disable_tp=True)),
        said("g", Gated("g", input_is_parallel=False)),
    ]
    of_another = Gated("h")
    of_another.down = Own(16, 8, bias=False, prefix="h.down")
    result["said"].append(said("h", of_another))
"""


def test_dense_mlps_are_told_by_their_modules_and_not_by_names():
    found = run_child(FOUND)
    assert found["found"] == [
        "language_model.layers.0.ffn",
        "language_model.layers.4.first",
        "language_model.layers.4.second",
    ]
    expected = [
        "taken",
        "taken",
        "c: its activation (Other) is not known to work on columns alone",
        "d.up: it has a bias",
        "e.down: its sums are made elsewhere (reduce_results)",
        "f.down: it is whole on every tensor-parallel rank",
        "g.down: its sums are made elsewhere (reduce_results)",
        "h.down: it is a Own, not vLLM's RowParallelLinear",
    ]
    for wanted, said in zip(expected, found["said"], strict=True):
        assert wanted in said, (wanted, said)
        assert said == "taken" or said.endswith("leave the key out for this model")
