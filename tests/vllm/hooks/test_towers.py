"""Linears of a vision tower stay whole: it runs when a request brings an image, not in lockstep."""

from __future__ import annotations

from hosted.child import run_child

MODELS = """
import torch
from torch import nn
import tempfile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm_layershard.errors import PlanError
from vllm_layershard.hosts.linears import check_matched, collecting, leave_towers
from vllm_layershard.plan import select
from vllm_layershard.schema import validated

class Layer(nn.Module):
    def __init__(self, prefix):
        super().__init__()
        self.o_proj = ReplicatedLinear(8, 8, bias=False, prefix=f"{prefix}.o_proj")

class Encoder(nn.Module):
    def __init__(self, prefix):
        super().__init__()
        self.layers = nn.ModuleList(Layer(f"{prefix}.layers.{i}") for i in range(2))

class SeesAndSpeaks(nn.Module):
    '''As vLLM's multimodal models are built: an encoder of any name, and a language model.'''
    def __init__(self):
        super().__init__()
        self.eyes = Encoder("eyes.encoder")
        self.language_model = Encoder("language_model.model")
    def get_language_model(self):
        return self.language_model

class HasEyesOfItsOwn(SeesAndSpeaks):
    def __init__(self):
        super().__init__()
        self.eyes.layers[1].lens = ReplicatedLinear(8, 8, prefix="eyes.encoder.layers.1.lens")

def build(construct, name="o_proj"):
    config = validated([name])
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as scratch:
        init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
        initialize_model_parallel()
        with collecting(config, num_layers=2) as found:
            model = construct()
    released = sum(p.is_meta for p in model.parameters())
    leave_towers(model, found, torch.device("cpu"))
    linears = [linear for linear, _ in found.values()]
    check_matched(config, select(linears, [name]), linears, VllmConfig())
    return model, released, [linear.prefix for linear, _ in found.values()]
"""


def test_only_the_language_model_is_sharded():
    found = run_child(f"""{MODELS}
model, released, prefixes = build(SeesAndSpeaks)
result = {{
    "released": released,
    "prefixes": prefixes,
    "eyes": [p.is_meta for p in model.eyes.parameters()],
    "loaders": [hasattr(p, "weight_loader") for p in model.eyes.parameters()],
    "language": [p.is_meta for p in model.language_model.parameters()],
}}""")
    assert found == {
        "released": 4,
        "prefixes": [
            "language_model.model.layers.0.o_proj",
            "language_model.model.layers.1.o_proj",
        ],
        "eyes": [False, False],
        "loaders": [True, True],
        "language": [True, True],
    }


def test_a_name_that_only_a_tower_has_matches_nothing():
    found = run_child(f"""{MODELS}
try:
    result = build(HasEyesOfItsOwn, "lens")
except PlanError as error:
    result = str(error)""")
    assert "'lens'" in found
    assert "o_proj" in found


def test_a_model_without_towers_is_left_alone():
    found = run_child(f"""{MODELS}
model, released, prefixes = build(lambda: Encoder("model"))
result = [released, prefixes, [p.is_meta for p in model.parameters()]]""")
    assert found == [2, ["model.layers.0.o_proj", "model.layers.1.o_proj"], [True, True]]
