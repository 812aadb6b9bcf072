"""Where an op moves to in a traced graph: ahead of what may be fused, behind all that it needs."""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child

STEPS = """
import json, sys
import torch
import vllm.ir.ops
from torch.nn.functional import linear, silu
from vllm_layershard.hosts.graphs.fusions import move_ahead
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.ops import reach, wait

ops._work.update(reach=lambda *given: None, wait=lambda *given: None)

def norm(x):
    return vllm.ir.ops.rms_norm(x, None, 1e-6)

def fused(x, residual):
    return vllm.ir.ops.fused_add_rms_norm(x, residual, None, 1e-6)

def in_a_row(x, w):
    x = linear(x, w)
    reach(x, "1")
    x = norm(x)
    wait(x, "1.qkv_proj")
    return linear(x, w)

def of_a_stage(x, residual):
    reach(x, "1")
    x, residual = fused(x, residual)
    wait(x, "1.qkv_proj")
    return linear(x, residual)

def native_activation(x, w):
    x = linear(x, w)
    x = silu(x[..., :2]) * x[..., 2:]
    wait(x, "1.down_proj")
    return x

def two_products(x, w):
    x = norm(linear(x, w) + linear(x, 2 * w))
    wait(x, "1.qkv_proj")
    return x

def past_a_product(x, w):
    y = norm(linear(x, w))
    x = linear(x, w)
    wait(y, "1.qkv_proj")
    return x + y

def of_a_side_branch(x, w):
    side = linear(x, w)
    x = norm(linear(x, w) * 2)
    y = x + side
    reach(y, "1")
    return y

def other_rows(x, w):
    x = linear(x, w).view(-1, 2)
    reach(x, "1")
    return x

def written_in_place(x, w):
    x, residual = linear(x, w), linear(x, 2 * w)
    torch.ops._C.fused_add_rms_norm(x, residual, None, 1e-6)
    wait(x, "1.qkv_proj")
    return linear(x, w)

def written_into_memory(x, w):
    y, out = linear(x, w), torch.empty(4, 4)
    torch.ops._C.rms_norm(out, y, None, 1e-6)
    wait(out, "1.qkv_proj")
    return linear(out, w)

def through_memory(x, w):
    side, buffer = linear(x, w), torch.empty(4, 4)
    torch.ops._C.rms_norm(buffer, side, None, 1e-6)
    y = linear(buffer, w)
    z = silu(y) * side
    wait(z, "1.down_proj")
    return z

def of_something_else(x, w):
    x, y = linear(x, w), norm(2 * w)
    wait(x, "1.qkv_proj")
    return linear(x, w) + y

def story(graph):
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            target = getattr(node.target, "overloadpacket", node.target)
            name = getattr(target, "__name__", target)
            yield f"{name} {node.args[0]}" if name in ("reach", "wait") else name

def moved(graph, example_inputs):
    found.append([move_ahead(graph.graph), move_ahead(graph.graph), list(story(graph.graph))])
    return lambda *given: [torch.empty(4, 4)]  # nobody asks what the steps make

found = []
steps = torch.compile(globals()[sys.argv[1]], backend=moved, fullgraph=True)
steps(torch.ones(4, 4), torch.ones(4, 4))
(result,) = found
"""


@pytest.mark.parametrize(
    ("steps", "moved", "story"),
    [
        ("in_a_row", 1, ["linear", "reach x", "wait x", "rms_norm", "linear"]),
        (
            "of_a_stage",
            1,
            ["reach l_x_", "wait l_x_", "fused_add_rms_norm", *2 * ["getitem"], "linear"],
        ),
        ("native_activation", 1, ["linear", "wait x", "getitem", "silu", "getitem", "mul"]),
        ("two_products", 1, ["linear", "mul", "linear", "add", "wait add", "rms_norm"]),
        ("past_a_product", 0, ["linear", "rms_norm", "linear", "wait y", "add"]),
        ("of_a_side_branch", 0, ["linear", "linear", "mul", "rms_norm", "add", "reach y"]),
        ("other_rows", 0, ["linear", "view", "reach x"]),
        (
            "written_in_place",
            1,
            ["linear", "mul", "linear", "wait x", "fused_add_rms_norm", "linear"],
        ),
        ("written_into_memory", 1, ["linear", "wait y", "empty", "rms_norm", "linear"]),
        (
            "through_memory",
            1,
            ["linear", "empty", "rms_norm", "linear", "wait y", "silu", "mul"],
        ),
        ("of_something_else", 0, ["linear", "mul", "rms_norm", "wait x", "linear", "add"]),
    ],
)
def test_an_op_moves_no_further_than_what_it_must_stay_behind(steps, moved, story):
    assert run_child(STEPS, steps) == [moved, 0, story]


GIVEN = """
import json, sys
from types import SimpleNamespace
import torch
from torch.nn.functional import linear, silu
from vllm.config import CompilationConfig
from vllm_layershard.hosts.graphs.fusions import _moving_ahead
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.ops import wait

ops._work.update(wait=lambda *given: None)

def steps(x, w):
    x = silu(linear(x, w))
    wait(x, "1.down_proj")
    return linear(x, w)

def story(self, graph, example_inputs):
    found.append([getattr(n.target, "__name__", "wait") for n in graph.graph.nodes if n.args])
    return graph

found = []
config = CompilationConfig(**json.loads(sys.argv[1]))
backend = SimpleNamespace(compilation_config=config)
whole = lambda graph, given: _moving_ahead(story)(backend, graph, given)
torch.compile(steps, backend=whole, fullgraph=True)(torch.ones(4, 4), torch.ones(4, 4))
result = ["silu" in found[0][:2], config.traced_files != set()]
"""
PIECES = ["vllm::unified_attention", "layershard::reach", "layershard::wait"]


@pytest.mark.parametrize(
    ("stated", "stays"),
    [
        ({"splitting_ops": PIECES}, False),
        ({"splitting_ops": []}, True),
        ({"splitting_ops": PIECES[:1]}, True),
        ({"splitting_ops": PIECES, "use_inductor_graph_partition": True}, True),
    ],
)
def test_none_moves_where_inductor_puts_the_whole_graph_in_order(stated, stays):
    assert run_child(GIVEN, json.dumps(stated)) == [stays, True]
