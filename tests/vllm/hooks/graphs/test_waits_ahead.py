"""A linear whose weight a block waits for does not run where the block was not entered."""

from __future__ import annotations

from hosted.child import run_child

AHEAD = """
from types import SimpleNamespace
import torch
from vllm_layershard.hosts.graphs.hidden import wait_ahead_of_experts
from vllm_layershard.hosts.sharded_linear import ShardedLinearMethod
from vllm_layershard.runtime.ops import Place, bind

class Plain:
    def apply(self, layer, x, bias=None):
        return x + 1

class Linear(torch.nn.Module):
    def forward(self, x):
        return self.quant_method.apply(self, x)

class Runner(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        self._shared_experts = shared

    def forward(self, x):
        return self._shared_experts(x)

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared_experts = Linear()
        self.experts = Runner(torch.nn.Sequential(self.shared_experts))

    def forward(self, x):
        return self.experts(x)

KEY, waits, arrived = "layers.1.mlp.shared_experts", [], set()
series = SimpleNamespace(wait=lambda p: (waits.append(p), arrived.add(p)),
                         has_arrived=lambda p: p in arrived)
model = torch.nn.ModuleDict({"mlp": Block()})
linear, place = model["mlp"].shared_experts, Place(series, 4)
linear.quant_method = ShardedLinearMethod(Plain(), KEY, place)
bind("layers.1", KEY, place)
wait_ahead_of_experts(model, {KEY: linear})
x = torch.zeros(2)
try:
    model["mlp"].experts(x)
    said = None
except Exception as error:
    said = f"{type(error).__name__}: {error}"
result = {"said": said, "sum": float(model["mlp"](x).sum()), "waits": waits}
"""


def test_a_linear_is_refused_by_name_where_its_block_was_not_entered():
    assert run_child(AHEAD) == {
        "said": "HostError: layer_sharding: layers.1.mlp.shared_experts runs where its weight was "
        "not waited for: Block waits for it at its entry, and was not entered before; leave it out",
        "sum": 2.0,
        "waits": [4],
    }
