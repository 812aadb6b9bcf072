"""Movements start at a decoder layer's boundary, whatever of its activations it is given."""

from __future__ import annotations

from hosted.child import run_child

REACHES = """
from types import SimpleNamespace
import torch
from vllm_layershard.hosts.boundary import install_boundary
from vllm_layershard.runtime.ops import Place, bind

class Layer(torch.nn.Module):
    def forward(self, positions, hidden_states, residual=None, prefix_sum=None):
        return prefix_sum if hidden_states is None else hidden_states

reached = []
bind("layers.0", "layers.0.o_proj", Place(SimpleNamespace(reach=reached.append), 0))
layer, x = Layer(), torch.ones(2)
install_boundary(layer, "layers.0")
layer(x, x)
layer(x, hidden_states=x)
layer(positions=x, hidden_states=None, residual=None, prefix_sum=x)
result = reached
"""


def test_a_first_layer_without_hidden_states_starts_them_too():
    """As Kimi-K3's is called in vLLM 0.32 (models/kimi_k3/nvidia/model.py)."""
    assert run_child(REACHES) == [0, 0, 0]
