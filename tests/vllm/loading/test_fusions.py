"""The graph that vLLM compiles: both ops stand where no pattern of vLLM's fusions is split.

Real vLLM models on real ranks, traced as vLLM traces them. The traced graph is run as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hosted.engines import load, run_engines
from recital import model_path

TOKENS = 6

KINDS = {
    "linear": "product",
    "onednn_mm": "product",
    "unified_mla_attention_with_output": "attention",
    "moe_forward_shared": "experts",
    "shm_allreduce": "all-reduce",
    "rms_norm": "norm",
    "fused_add_rms_norm": "norm",
    "silu": "activation",
    "embedding": "embedding",
}
"""What is told of a graph, by the name of a function or op."""


def told(graph: torch.fx.Graph) -> list[str]:
    """The kinds of its nodes in their order; of both ops what they stand for."""
    story = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        packet = getattr(node.target, "overloadpacket", node.target)
        name = packet.__name__
        if name in ("reach", "wait"):
            story.append(f"{name} {'.'.join(node.args[1].split('.')[2:])}")
        elif name in KINDS:
            story.append(KINDS[name])
    return story


def of_layer(story: list[str], layer: int) -> list[str]:
    """From the boundary of a layer to that of the next; names are without the layer's number."""
    begin, end = story.index(f"reach {layer}"), story.index(f"reach {layer + 1}")
    return ["reach", *(each.replace(f" {layer}.", " ") for each in story[begin + 1 : end])]


@torch.inference_mode()
def traced(rank: int, config: Any) -> dict[str, Any]:
    """The graph's story, and whether it computes what the model does when nothing is compiled."""
    from vllm.compilation.backends import VllmBackend
    from vllm.config import CompilationMode, set_current_vllm_config
    from vllm.forward_context import set_forward_context

    from vllm_layershard.runtime.ops import bound_series

    graphs = []

    def run_as_it_is(self: Any, graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    VllmBackend.__call__ = run_as_it_is
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.backend = "eager"
    config.compilation_config.splitting_ops = ["layershard::reach", "layershard::wait"]
    model = load(config, lambda model: None)
    inner, given = model.model, (torch.arange(TOKENS), torch.arange(TOKENS), None)
    outputs = []
    for compiled in (False, True):
        inner.do_not_compile = not compiled
        for series in bound_series():
            series.slots.poison()
        with set_current_vllm_config(config), set_forward_context(None, config, TOKENS):
            outputs.append(inner(*given))
    (graph,) = graphs
    return {"story": told(graph.graph), "equal": torch.equal(*outputs)}


SHARDED = [
    "fused_qkv_a_proj",
    "q_b_proj",
    "o_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
    "shared_experts.gate_up_proj",
    "shared_experts.down_proj",
]
REDUCES = {1: [], 2: ["all-reduce"]}


def attention_block(tp: int) -> list[str]:
    return [
        "reach",
        "wait self_attn.fused_qkv_a_proj",
        *REDUCES[tp],
        "norm",
        "product",
        "wait self_attn.q_b_proj",
        "norm",
        "norm",
        "product",
        "attention",
        "wait self_attn.o_proj",
        "product",
    ]


@pytest.mark.parametrize(("tp", "dp"), [(1, 2), (2, 2)])
def test_no_op_stands_between_what_vllm_fuses(tp, dp):
    for seen in run_engines(model_path(), SHARDED, traced, tp=tp, dp=dp):
        assert not isinstance(seen, str), seen
        assert seen["equal"]
        assert seen["story"][0] == "embedding"
        assert of_layer(seen["story"], 1) == [
            *attention_block(tp),
            "wait mlp.gate_up_proj",
            *REDUCES[tp],
            "norm",
            "product",
            "wait mlp.down_proj",
            "activation",
            "product",
        ]
        assert of_layer(seen["story"], 6) == [
            *attention_block(tp),
            "wait mlp.shared_experts.gate_up_proj",
            "wait mlp.shared_experts.down_proj",
            *REDUCES[tp],
            "norm",
            "experts",
        ]
