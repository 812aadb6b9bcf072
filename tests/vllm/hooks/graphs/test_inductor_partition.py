"""Graphs that Inductor cuts (`use_inductor_graph_partition`): both ops of ours run between pieces.

vLLM's own rules tell Inductor where. It compiles for the CPU here and is told that all is of a GPU,
so that it looks for pieces at all. What would be captured is recorded instead.
"""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child

LAYERS = 3
OPS = ["layershard::reach", "layershard::wait"]

CUT = """
import json, sys
import torch
from torch._inductor.scheduler import BaseSchedulerNode
from torch._inductor.utils import set_customized_partition_wrappers
from vllm.compilation.partition_rules import inductor_partition_rule_context
from vllm_layershard.runtime import ops

events = []
ops._work["reach"] = lambda layer, rows: events.append(f"reach {layer}")
ops._work["wait"] = lambda linear: events.append(f"wait {linear}")
BaseSchedulerNode.is_gpu = lambda self: True

def piece(compiled, metadata):
    def run(*tensors):
        events.append("begin")
        returned = compiled(*tensors)
        events.append("end")
        return returned
    return run

set_customized_partition_wrappers(piece)
layers = int(sys.argv[1])
weights = [torch.randn(8, 8) for _ in range(layers)]

def forward(x):
    for layer in range(layers):
        x = x * 2
        torch.ops.layershard.reach(x, str(layer))
        x = torch.relu(x + 1)
        torch.ops.layershard.wait(x, str(layer))
        x = torch.relu(x @ weights[layer])
    return x

x = torch.randn(4, 8)
options = {"graph_partition": True, "fx_graph_cache": False}
with inductor_partition_rule_context(json.loads(sys.argv[2])):
    y = torch.compile(forward, fullgraph=True, options=options)(x.clone())
seen = list(events)
result = [seen, torch.allclose(y, forward(x.clone()))]
"""


@pytest.mark.parametrize("missing", [None, *OPS])
def test_no_piece_holds_an_op_of_ours_that_vllm_names(missing):
    """Where it names one alone, the other is in a piece: what is recorded could show it."""
    named = ["vllm::unified_attention", *(op for op in OPS if op != missing)]
    seen, equal = run_child(CUT, str(LAYERS), json.dumps(named))
    assert equal
    expected = ["begin", "end"]
    for layer in range(LAYERS):
        for op in ("reach", "wait"):
            ran = f"{op} {layer}"
            if f"layershard::{op}" == missing:
                expected.insert(-1, ran)
            else:
                expected += [ran, "begin", "end"]
    assert seen == expected
