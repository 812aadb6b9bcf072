"""What is looked up in vLLM by name is gone in a later one: an error names it."""

from __future__ import annotations

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config
from vllm_layershard.hosts import names
from vllm_layershard.hosts.names import Name

CHECK = "check(config)"
SPLITTING = """
config.parallel_config.enable_expert_parallel = True
config.parallel_config.tensor_parallel_size = 2
splitting_tokens(config)
"""
ASKED = {
    names.ENABLE_FAULT_TOLERANCE: (CHECK, "config.parallel_config"),
    names.SLEEP_MODE_BACKEND: (
        "config.model_config.enable_sleep_mode = True; check(config)",
        "config.model_config",
    ),
    names.ENABLE_CUMEM_ALLOCATOR: (
        "config.additional_config = PULLED; check(config)",
        "config.model_config",
    ),
    names.IS_SUBMODEL_CONFIG: (CHECK, "config.model_config"),
    names.SWA_BOUNDED_REPLAY: (
        "config.model_config.hf_config.kv_source_layer_ids = [1]; check(config)",
        "config.cache_config",
    ),
    names.ENABLE_HC_SP: (SPLITTING, "config.parallel_config"),
    names.MEGA_MOE_BACKENDS: (SPLITTING, "sys.modules['vllm.config.kernel']"),
    names.KV_SHARING_FAST_PREFILL: (
        "config.additional_config = MOVED; check(config)",
        "config.cache_config",
    ),
    names.GROUPS_TIMEOUT: (
        "groups.timeout(config.parallel_config, names.GROUPS_TIMEOUT)",
        "config.parallel_config",
    ),
    names.CPU_GROUPS_TIMEOUT: (
        "groups.timeout(config.parallel_config, names.CPU_GROUPS_TIMEOUT)",
        "config.parallel_config",
    ),
    names.LORA_DUAL_STREAM: ("hidden.wait_ahead_of_adapters()", "envs.environment_variables"),
    names.BREAK_DURING_CAPTURE: ("breaks.end_graphs_at_movements()", "breakable_cudagraph"),
    names.USES_META_DEVICE: (
        "check_linear(SimpleNamespace(prefix='o_proj', quant_method=UnquantizedLinearMethod()))",
        "QuantizeMethodBase",
    ),
    names.MOE_RUNNER: ("hidden.wait_ahead_of_experts(nn.Linear(1, 1), {})", "moe_runner"),
    names.SHARED_EXPERTS: ("hidden.wait_ahead_of_experts(nn.Sequential(runner), {})", "runner"),
    names.MAMBA_BASE: ("check_rows(nn.Linear(1, 1), MOVING, [])", "abstract"),
    names.SUPPORTS_MULTIMODAL: ("leave_towers(nn.Linear(1, 1), {}, None)", "interfaces"),
    names.GET_LANGUAGE_MODEL: (
        "leave_towers(Pictured(), {}, None)",
        "interfaces.SupportsMultiModal",
    ),
    names.DCP_LINEAR: ("_tp_copies(nn.Linear(1, 1))", "linear"),
    names.QREP_ACTIVE: ("_tp_copies(queries)", "queries"),
    names.REDUCE_RESULTS: ("make_part(rows, 0, 2)", "rows"),
    names.REQUIRES_UNQUANTIZED_INPUT: (
        "take_plain_tensors(SimpleNamespace())",
        "linear.LinearBase",
    ),
}
"""What has each name looked up, and what of vLLM's has it."""

GONE = """
import sys
from types import SimpleNamespace
from torch import nn
from vllm import envs
from vllm.compilation import breakable_cudagraph
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.fused_moe.runner import moe_runner
from vllm.model_executor.layers.mamba import abstract
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.models import interfaces
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts import groups, names
from vllm_layershard.hosts.exclusions import splitting_tokens
from vllm_layershard.hosts.ffn.part import make_part
from vllm_layershard.hosts.graphs import breaks, hidden
from vllm_layershard.hosts.linears import _tp_copies, leave_towers
from vllm_layershard.hosts.moves.actual_rows import check_rows
from vllm_layershard.hosts.settings import check
from vllm_layershard.hosts.sharded_linear import check_linear, take_plain_tensors

model, name, asked, owner = sys.argv[1:]
if "config" in owner:
    config = EngineArgs(
        model=model, data_parallel_size=2, skip_tokenizer_init=True,
        additional_config={"layer_sharding": ["o_proj"]},
    ).create_engine_config()
PULLED = {"layer_sharding": {"layers": ["o_proj"], "transport": "pull"}}
MOVED = {"layer_sharding": {"layers": ["o_proj"], "move": "activations"}}
MOVING = LayerShardConfig(layers=["o_proj"], move="activations")
runner = object.__new__(moe_runner.MoERunner)
nn.Module.__init__(runner)
runner._shared_experts = None
queries = object.__new__(linear.DCPGroupColumnParallelLinear)
nn.Module.__init__(queries)
queries.qrep_active = False
rows = object.__new__(linear.RowParallelLinear)
nn.Module.__init__(rows)
rows.input_size = rows.output_size = 8
rows.output_partition_sizes, rows.params_dtype, rows.reduce_results = [8], None, True
rows.quant_method = SimpleNamespace(create_weights=lambda **_: None)

class Pictured(nn.Module, interfaces.SupportsMultiModal):
    def get_language_model(self):
        return self

def ask():
    try:
        exec(asked, globals())
        return "accepted"
    except HostError as error:
        return str(error)

result = [ask()]
has = eval(owner)
if isinstance(has, dict):
    del has[name]
else:
    for each in (has, *getattr(has, "__mro__", type(has).__mro__)):
        if name in vars(each):
            delattr(each, name)
    if owner == "interfaces.SupportsMultiModal":
        del Pictured.get_language_model
result.append(ask())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_config(tmp_path_factory.mktemp("model"), CONFIG))


def test_every_name_is_tried():
    assert set(ASKED) == {each for each in vars(names).values() if isinstance(each, Name)}


@pytest.mark.parametrize("name", ASKED, ids=lambda name: name.symbol)
def test_a_name_that_is_gone_is_an_error_that_names_it(name, model):
    asked, owner = ASKED[name]
    there, gone = run_child(GONE, model, name.symbol.rpartition(".")[2], asked, owner)
    if name is names.SWA_BOUNDED_REPLAY:  # it is on
        assert there.startswith("layer_sharding: cannot be combined with the decoder replay")
    else:
        assert there == "accepted"
    assert gone == (
        f"vllm has no {name.symbol}: this version of vllm-layershard was written for vllm "
        f"{name.first} to 0.33; install one of these, or a newer vllm-layershard"
    )


RELEASES = """
import sys, vllm
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.names import Name
result = []
for release in sys.argv[1:]:
    vllm.__version__ = release
    try:
        result.append(Name("vllm.config.Some.field", first="0.31").of(object(), absent="older"))
    except HostError as error:
        result.append(type(error).__name__)
"""


def test_only_a_release_that_is_known_to_be_older_may_lack_a_name():
    older = ["0.29.0", "0.29.1+cpu", "0.30.2", "0.31.0rc1.dev3"]
    others = ["0.31.0", "0.34.0", "0.28.0", "0.1.dev1+g1234567", "dev"]
    found = run_child(RELEASES, *older, *others)
    assert found == ["older"] * len(older) + ["HostError"] * len(others)
