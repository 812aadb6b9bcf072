"""Which ranks hold the same copy of a linear, by vLLM's own modules and its own arithmetic."""

from __future__ import annotations

import pytest

from hosted.child import run_child
from vllm_layershard.plan import ParallelLayout

WORLD = """
import sys, tempfile
import torch
from torch import nn
from types import SimpleNamespace
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
from vllm_layershard.hosts.linears import describe_linear

config = VllmConfig()
parallel = config.parallel_config

def seen_by(tp, tp_rank, build, **sizes):
    '''What one tensor-parallel rank builds, without memory and without the other ranks.'''
    with set_current_vllm_config(config):
        if parallel_state._WORLD is None:
            scratch = tempfile.mkdtemp()
            init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
            initialize_model_parallel()
        parallel_state._TP.world_size, parallel_state._TP.rank_in_group = tp, tp_rank
        for name, size in sizes.items():
            setattr(parallel, name, size)
        with torch.device("meta"):
            return build()

def told(module):
    linear = describe_linear(module, 0)
    return [linear.tp_replicated, linear.tp_copies, list(linear.tensors[0].shape)]
"""

QUERIES = f"""{WORLD}
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear, DCPGroupColumnParallelLinear, ReplicatedLinear
)

def build(kind):
    return kind(8, 64, bias=False, prefix="model.layers.0.self_attn.q_b_proj")

result = []
for dcp in (1, 2, 4):
    found = []
    for rank in range(4):
        module = seen_by(4, rank, lambda: build(DCPGroupColumnParallelLinear),
                         decode_context_parallel_size=dcp)
        found.append([*told(module), module.tp_rank])
    result.append(found)
def dsa_cp():
    return ColumnParallelLinear(
        8, 64, bias=False, tp_rank=0, tp_size=1, prefix="model.layers.0.self_attn.q_b_proj"
    )

def without_a_size():
    linear = ReplicatedLinear(8, 64, bias=False, prefix="model.layers.0.self_attn.q_b_proj")
    linear.tp_size = None  # as vllm-ascend's with disable_tp
    return linear

builds = (lambda: build(ColumnParallelLinear), dsa_cp, without_a_size)
result += [told(seen_by(4, 1, each)) for each in builds]
"""


def test_the_queries_of_a_decode_context_group_are_copies_over_its_ranks():
    """`dcp_q_replicate`: TP 4 and DCP 1, 2, 4. The ranks that load the same part are one group."""
    *by_dcp, plain, dsa_cp, without_a_size = run_child(QUERIES)
    for dcp, found in zip((1, 2, 4), by_dcp, strict=True):
        whole, copies = dcp == 4, 2 if dcp == 2 else 1
        assert [seen[:3] for seen in found] == [[whole, copies, [64 * dcp // 4, 8]]] * 4
        parts: dict[int, list[int]] = {}
        for rank, (*_, part) in enumerate(found):
            parts.setdefault(part, []).append(rank)
        groups = ParallelLayout(tp=4, dcp=dcp).groups(whole, copies)
        assert groups == tuple(map(tuple, parts.values()))
    assert plain == [False, 1, [16, 8]]
    assert dsa_cp == without_a_size == [True, 1, [64, 8]]  # as vllm-ascend's DSA-CP builds them


WHOLE = f"""{WORLD}
from vllm.model_executor.models.deepseek_v2 import DeepseekV2MLP, Indexer
from vllm_layershard.hosts.linears import collecting
from vllm_layershard.plan import ParallelLayout, group_plans, select
from vllm_layershard.schema import validated

class Layer(nn.Module):
    '''Of a DeepSeek-V3.2 under sequence parallelism: a dense MLP, shared experts, an indexer.'''
    def __init__(self, at):
        super().__init__()
        prefix = f"model.layers.{{at}}"
        for name in ("mlp", "shared_experts"):
            whole = dict(is_sequence_parallel=True, prefix=f"{{prefix}}.{{name}}")
            self.add_module(name, DeepseekV2MLP(16, 32, "silu", **whole))
        self.split = DeepseekV2MLP(16, 32, "silu", prefix=f"{{prefix}}.split")
        sizes = SimpleNamespace(
            index_topk=4, index_n_heads=2, index_head_dim=128, qk_rope_head_dim=64
        )
        self.indexer = Indexer(config, sizes, 16, 8, None, config.cache_config, None,
                               f"{{prefix}}.self_attn.indexer")

config.attention_config.sparse_mla_prefill_workspace_factor = 1
config.model_config = SimpleNamespace(max_model_len=64, is_moe=True)
names = ["mlp.gate_up_proj", "mlp.down_proj", "shared_experts.down_proj", "wq_b", "split.down_proj"]
settings = validated(names)
with collecting(settings, num_layers=2) as found:
    layers = seen_by(2, 1, lambda: nn.ModuleList(Layer(at) for at in range(2)))
linears = [linear for linear, _ in found.values()]
layout = ParallelLayout(tp=2, dp=2, pcp=2)
result = [
    [plan.tp_replicated, plan.ranks, sorted(s.series.name for s in plan.plan.series)]
    for plan in group_plans(select(linears, names), settings, layout)
]
"""


def test_what_is_whole_on_every_rank_is_shared_over_all_of_a_stage():
    """Dense MLPs and shared experts under sequence parallelism, and the indexer's `wq_b`."""
    split, whole = run_child(WHOLE)
    assert split == [False, [[0, 2, 4, 6], [1, 3, 5, 7]], ["split.down_proj"]]
    names = ["mlp.down_proj", "mlp.gate_up_proj", "shared_experts.down_proj", "wq_b"]
    assert whole == [True, [[*range(8)]], names]


RANKS = f"""{WORLD}
made = {{}}
def noted(group_ranks, *_, group_name=None, **__):
    made[group_name] = [list(ranks) for ranks in group_ranks]
    return SimpleNamespace(world_size=len(made[group_name][0]), rank_in_group=0, destroy=lambda: 0)

parallel_state.init_model_parallel_group = noted
parallel_state.get_world_group = lambda: SimpleNamespace(local_rank=0, device_group=None)
torch.distributed.is_initialized = lambda: True
torch.distributed.get_world_size = lambda group=None: 16
torch.distributed.get_rank = lambda group=None: 0
torch.distributed.get_backend = lambda group=None: "gloo"
tp, pp, pcp, dcp = map(int, sys.argv[1:])
parallel.data_parallel_size = 16 // (tp * pp * pcp)
with set_current_vllm_config(config):
    initialize_model_parallel(tp, pp, pcp, dcp)
result = made
"""


@pytest.mark.parametrize(
    ("tp", "pp", "pcp", "dcp"),
    [(2, 2, 2, 1), (4, 2, 1, 2), (4, 2, 1, 4), (2, 1, 2, 2), (8, 1, 1, 2)],
)
def test_groups_are_made_of_vllms_own(tp, pp, pcp, dcp):
    """A group of ours is what remains joined by the dimensions over which copies are equal."""
    made = run_child(RANKS, *map(str, (tp, pp, pcp, dcp)))
    layout = ParallelLayout(tp=tp, dp=16 // (tp * pp * pcp), pcp=pcp, pp=pp, dcp=dcp)
    assert {"dp", "pcp", "dcp", "tp"} <= made.keys()
    for tp_replicated, tp_copies in layout.kinds:
        over = "tp" if tp_replicated else "dcp" if tp_copies > 1 else "pcp"
        alike = [ranks for name in ("dp", "pcp", over) for ranks in made[name]]
        assert joined(alike) == {*layout.groups(tp_replicated, tp_copies)}


def joined(groups: list[list[int]]) -> set[tuple[int, ...]]:
    """The ranks that these groups connect."""
    group_of = {rank: {rank} for ranks in groups for rank in ranks}
    for ranks in groups:
        together = set().union(*(group_of[rank] for rank in ranks))
        group_of |= dict.fromkeys(together, together)
    return {tuple(sorted(together)) for together in group_of.values()}
