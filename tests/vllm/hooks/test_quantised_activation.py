"""An activation that its producer has quantised reaches a sharded linear, as on CUDA."""

from __future__ import annotations

from hosted.child import run_child

QUANTISED = """
from types import SimpleNamespace
import torch
from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym
from vllm_layershard.hosts.sharded_linear import ShardedLinearMethod
from vllm_layershard.runtime.ops import Place, bind

class Kernel:
    '''Takes both, as vLLM's fp8 kernels do.'''
    def apply(self, layer, x, bias=None):
        return x.data.float() * x.scale if isinstance(x, QuantizedActivation) else x * 2

waits = []
place = Place(SimpleNamespace(wait=waits.append), 7)
bind("model.layers.0", "model.layers.0.mlp.down_proj", place)
method = ShardedLinearMethod(Kernel(), "model.layers.0.mlp.down_proj", place)

def quantised(x):
    data = (x * 4).to(torch.float8_e4m3fn)
    scale = torch.full((1,), 0.25)
    activation = QuantizedActivation(data, scale, x.dtype, x.shape, kFp8StaticTensorSym)
    return method.apply(None, activation)

def plain(x):
    return method.apply(None, x)

x = torch.ones(3, 8)
result = {}
for name, forward in (("quantised", quantised), ("plain", plain)):
    for mode, run in (("eager", forward), ("compiled", torch.compile(forward, fullgraph=True))):
        waits.clear()
        expected = x * 2 if name == "plain" else x
        equal = bool(torch.equal(run(x), expected))
        result[f"{name}, {mode}"] = [equal, list(waits)]
"""


def test_a_quantised_activation_waits_as_a_plain_one_does():
    found = run_child(QUANTISED)
    assert len(found) == 4
    assert set(map(str, found.values())) == {"[True, [7]]"}, found
