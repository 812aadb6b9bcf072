"""A weight that is moved is waited for, and read where it arrives: or an error by name."""

from __future__ import annotations

import pytest

from hosted.child import run_child

READS = """
import sys
from types import SimpleNamespace
import torch
from torch import nn
from vllm.forward_context import override_forward_context
from torch.nn.functional import linear as product
from capturing import CapturingDevice
from one_gpu.copies import OneOfTwo
from one_gpu.stack import WIDTH
from vllm_layershard.hosts.graphs.hidden import wait_at_entry
from vllm_layershard.hosts.graphs.reads import require_reads, runs_all_on
from vllm_layershard.hosts.sharded_linear import ShardedLinearMethod
from vllm_layershard.runtime.ops import Place

class Plain:
    def apply(self, layer, x, bias=None):
        return product(x, layer.weight)

class Block(nn.Module):
    '''Calls a linear; `read` says how in a forward.'''
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x, read):
        if read == "itself":
            return product(x, self.linear.weight)
        return x if read == "skipped" else self.linear.quant_method.apply(self.linear, x)

case, step = sys.argv[1], int(sys.argv[2])
LAYERS, CULPRIT = 5, 1
stack = OneOfTwo(CapturingDevice(), LAYERS, step)
blocks = []
for i, linear in enumerate(stack.linears):
    linear.prefix = f"gpu.{i}.linear"
    linear.quant_method = ShardedLinearMethod(Plain(), linear.prefix, Place(stack.series, i))
    blocks.append(Block(linear))
if case.startswith("ahead"):
    wait_at_entry(blocks[CULPRIT], [blocks[CULPRIT].linear])
runs_all = runs_all_on("npu" if case.startswith("npu") else "cuda")
require_reads(stack.series, list(stack.linears), traced=False, runs_all=runs_all)
DUMMIES = {"npu, dummies": (0, 2), "npu": (0,), "npu, read by the model": (0, 1)}.get(case, ())
HOW = {
    "npu, dummies": lambda forward: "skipped" if forward in DUMMIES else "run",
    "npu, skipped": lambda forward: "skipped" if forward < 2 else "run",
    "npu, skipped later": lambda forward: "skipped" if forward == 2 else "run",
    "npu, read by the model": lambda forward: "skipped" if forward in DUMMIES else "itself",
    "read by the model": lambda forward: "itself",
    "skipped once": lambda forward: "skipped" if forward == 1 else "run",
    "ahead, read by the model": lambda forward: "itself",
}.get(case, lambda forward: "run")

said, right = None, []
try:
    with torch.inference_mode():
        for forward in range(4):
            x = torch.randn(2, WIDTH)
            expected, found = x, x
            metadata = None if forward in DUMMIES else {"attention": object()}
            with override_forward_context(SimpleNamespace(attn_metadata=metadata)):
                for i, block in enumerate(blocks):
                    torch.ops.layershard.reach(found, f"gpu.{i}")
                    found = block(found, HOW(forward) if i == CULPRIT else "run")
                    expected = product(expected, stack.whole[i])
            right.append(bool(torch.equal(found, expected)))
            if case == "replaced":
                weight = stack.linears[CULPRIT].weight
                stack.linears[CULPRIT].weight = nn.Parameter(weight.clone(), requires_grad=False)
except Exception as error:
    said = f"{type(error).__name__}: {error}"
result = {"said": said, "right": right}
"""

WORDS = {
    "read by the model": (1, "its weight was moved, and a forward did not wait for it: the model"),
    "skipped once": (2, "its weight was moved, and a forward did not wait for it: the model"),
    "npu, skipped": (1, "its weight was moved, and a forward did not wait for it: the model"),
    "npu, skipped later": (3, "its weight was moved, and a forward did not wait for it: the model"),
    "npu, read by the model": (3, "its weight was moved, and a forward did not wait for it: the"),
    "ahead, read by the model": (1, "a forward did not run it: the model reads its weight outside"),
    "replaced": (1, "its tensor 'weight' was replaced after it was loaded and does not see the"),
}


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("case", WORDS)
def test_a_weight_that_is_not_read_where_it_arrives_is_named_before_the_next_forward(case, step):
    found = run_child(READS, case, str(step))
    forwards, words = WORDS[case]
    assert len(found["right"]) == forwards, "the forwards before the error"
    assert found["said"].startswith(f"HostError: layer_sharding: gpu.1.linear: {words}")
    assert found["said"].endswith("leave it out")


@pytest.mark.parametrize("step", [0, 1, 3])
def test_forwards_without_metadata_skip_linears_on_an_npu(step):
    """What they leave in the slots is not laid at the next forward's door."""
    found = run_child(READS, "npu, dummies", str(step))
    assert found == {"said": None, "right": [False, True, False, True]}


@pytest.mark.parametrize("case", ["run", "ahead"])
def test_linears_that_wait_pass(case):
    assert run_child(READS, case, "1") == {"said": None, "right": [True] * 4}
