"""vLLM's breakable graphs end at all ops of ours; a whole forward's graph holds reach and wait."""

from __future__ import annotations

import pytest

from hosted.child import run_child

BREAKS = """
import sys
import torch
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from capturing import CapturingDevice, Graph, compute
from hosted.breakable import replayed
from one_gpu.copies import OneOfTwo
from one_gpu.stack import WIDTH
from vllm_layershard.hosts.graphs.breaks import end_graphs_at_movements
from vllm_layershard.runtime import ops

end_graphs_at_movements()
LAYERS, MODE, STEP = 3, sys.argv[1], int(sys.argv[2])
stack = OneOfTwo(CapturingDevice(), LAYERS, STEP)
x = torch.randn(2, WIDTH)
kept = [[torch.empty_like(x) for _ in range(3)] for _ in range(LAYERS)]

@eager_break_during_capture
def attention(i):  # of numbers: vLLM's CPU build cannot refer weakly to a tensor
    Graph.log.append("attention")
    compute(lambda: torch.cos(kept[i][0], out=kept[i][1]))

def noted(name, of):
    def call(position):
        Graph.log.append(f"{name} {position}")
        of(position)
    return call

stack.series.reach = noted("reach", stack.series.reach)
stack.series.wait = noted("wait", stack.series.wait)

def linear(i, source, target):
    target.copy_(stack.linears[i](source))

def forward():
    source = x
    for i, (before, between, after) in enumerate(kept):
        ops.reach(source, f"gpu.{i}")
        compute(lambda source=source, target=before: torch.sin(source, out=target))
        attention(i)
        ops.wait(between, f"gpu.{i}.linear")
        compute(lambda i=i, source=between, target=after: linear(i, source, target))
        source = after
    return source

def expected():
    source = x
    for weight in stack.whole:
        source = torch.nn.functional.linear(torch.cos(torch.sin(source)), weight)
    return source

result = replayed(stack, MODE, x, forward, expected)
"""


def forward(mode: str, step: int, breakable: str) -> dict:
    return run_child(BREAKS, mode, str(step), VLLM_USE_BREAKABLE_CUDAGRAPH=breakable)


@pytest.mark.parametrize("step", [0, 1])
def test_a_breakable_graph_ends_at_both_ops_and_at_attention(step):
    found = forward("PIECEWISE", step, "1")
    layer = [
        ["end", f"reach {i}", "begin", "end", "attention", "begin", "end", f"wait {i}", "begin"]
        for i in range(3)
    ]
    assert found["log"] == ["begin", *(event for events in layer for event in events), "end"]
    assert found["right"] == [True, True, True], "each replay moves what it reads"


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("breakable", ["0", "1"])
def test_a_graph_of_a_whole_forward_holds_both_ops(step, breakable):
    found = forward("FULL", step, breakable)
    layer = [[f"reach {i}", "attention", f"wait {i}"] for i in range(3)]
    assert found["log"] == ["begin", *(event for events in layer for event in events), "end"]
    assert found["right"] == [True, True, True]


MOVED = """
import torch
from vllm.compilation import breakable_cudagraph as breakable
from capturing import CapturingDevice, Graph, compute
from gloo.moving import bind_moving
from hosted.breakable import replayed
from one_gpu.copies import OneOfTwo
from one_gpu.stack import WIDTH
from vllm_layershard.hosts.graphs.breaks import end_graphs_at_movements
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.moves.ops import linear, order_on

breakable.weak_ref_tensor = lambda tensor: tensor  # vLLM's CPU build has no kernel for it
end_graphs_at_movements()
LAYERS = 3
stack = OneOfTwo(CapturingDevice(), LAYERS, 1)

def noting(position, made):
    def compute_noted(x, bias):
        Graph.log.append(f"linear {position}")
        return made(x, bias)
    return compute_noted

rule = MoveRule("auto", 1)  # a forward with a token moves the weights
moving = bind_moving(
    stack.series, list(stack.linears), "moved", rule, lambda rows: (rows, rows), noting
)
x, order = torch.randn(2, WIDTH), order_on(torch.device("cpu"))
kept = [[torch.empty_like(x) for _ in range(2)] for _ in range(LAYERS)]

def forward():
    source = x
    for i, (before, made) in enumerate(kept):
        ops.reach(source, f"layers.{i}")
        compute(lambda source=source, target=before: torch.sin(source, out=target))
        linear(before, None, made, order, f"layers.{i}.moved")
        source = made
    return source

def expected():
    source = x
    for weight in stack.whole:
        source = torch.nn.functional.linear(torch.sin(source), weight)
    return source

result = replayed(stack, "PIECEWISE", x, forward, expected)
result["forwards"] = stack.series.counters.forwards
"""


def test_a_breakable_graph_ends_at_a_linear_whose_tokens_may_move():
    """The op waits for a weight that was started outside, or gathers as many rows as there are."""
    found = run_child(MOVED, VLLM_USE_BREAKABLE_CUDAGRAPH="1")
    layer = [["end", "begin", "end", f"linear {i}", "begin"] for i in range(3)]
    assert found["log"] == ["begin", *(event for events in layer for event in events), "end"]
    assert found["right"] == [True, True, True], "each replay computes with what it moves"
    assert found["forwards"] == 4, "the one that was captured, and each replay"
