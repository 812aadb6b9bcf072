"""Which linears can be whole behind a token exchange: vLLM's own classes, built in one process."""

from __future__ import annotations

import pytest

from hosted.child import run_child

MODELS = """
import tempfile
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear, ReplicatedLinear, RowParallelLinear,
)
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.exchange.construction import building
from vllm_layershard.hosts.exchange.whole_linears import WholeLinears
from vllm_layershard.hosts.linears import collecting, leave_towers
from vllm_layershard.plan import select

CONFIG = LayerShardConfig(("o_proj",), token_exchange=("o_proj",))
LAYERS = 2

def row(prefix, input_size=8, **asked):
    return RowParallelLinear(input_size, 8, bias=False, prefix=prefix, **asked)

class Layer(nn.Module):
    def __init__(self, prefix, make):
        super().__init__()
        self.o_proj = make(f"{prefix}.o_proj")

class Decoder(nn.Module):
    '''Two layers, and a draft layer behind them.'''
    def __init__(self, prefix, make):
        super().__init__()
        self.layers = nn.ModuleList(Layer(f"{prefix}.layers.{i}", make) for i in range(LAYERS + 1))

class SeesAndSpeaks(nn.Module):
    def __init__(self, make, eyes):
        super().__init__()
        self.eyes = Decoder("eyes", eyes)
        self.language_model = Decoder("language_model.model", make)
    def get_language_model(self):
        return self.language_model

world = tempfile.mkdtemp()
with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(1, 0, f"file://{world}/rendezvous", 0, "gloo")
    initialize_model_parallel()

def outcome(construct):
    '''The linears that are exchanged and all that are whole, by prefix; or the refusal.'''
    whole = WholeLinears(CONFIG.token_exchange, LAYERS, 2)
    with set_current_vllm_config(VllmConfig()), collecting(CONFIG, LAYERS) as found:
        with building(whole):
            model = construct()
    leave_towers(model, found, torch.device("cpu"))
    selected = select([linear for linear, _ in found.values()], CONFIG.layers)
    modules = {linear.prefix: module for linear, module in found.values()}
    try:
        exchanged = whole.checked(model, selected.values(), modules)
    except HostError as error:
        return str(error)
    every = [m for m in model.modules() if isinstance(m, RowParallelLinear)]
    return [[m.prefix for m in exchanged], [m.prefix for m in every if m.disable_tp]]

def decoder(make):
    return outcome(lambda: Decoder("model", make))
"""

WHOLE = ["model.layers.0.o_proj", "model.layers.1.o_proj"]


def test_linears_of_numbered_layers_are_whole_and_draft_layers_are_not():
    """11433: a drafter's o_proj was matched by its name, and was not whole."""
    assert run_child(f"{MODELS}\nresult = decoder(row)") == [WHOLE, WHOLE]


REFUSED = {
    'decoder(lambda p: row(p, reduce_results=False))': (
        "leaves its partial sums (reduce_results=False) to code that is not known"
    ),
    'decoder(lambda p: row(p, input_is_parallel=False))': (
        "is given all columns on every rank, and splits them itself"
    ),
    'decoder(lambda p: row(p, disable_tp=True))': (
        "is whole already, and its input is not split over ranks"
    ),
    'decoder(lambda p: row(p, input_size=7))': (
        "has an input of 7 columns, which 2 tensor-parallel ranks do not split evenly"
    ),
    'decoder(lambda p: ColumnParallelLinear(8, 8, bias=False, prefix=p))': (
        "is a ColumnParallelLinear, which vLLM does not split by its input's columns"
    ),
    'decoder(lambda p: ReplicatedLinear(8, 8, bias=False, prefix=p))': (
        "is a ReplicatedLinear, which vLLM does not split by its input's columns"
    ),
}  # fmt: skip


def test_each_linear_that_cannot_be_whole_is_refused_by_its_name():
    found = run_child(f"{MODELS}\nresult = [{', '.join(REFUSED)}]")
    for message, reason in zip(found, REFUSED.values(), strict=True):
        assert message == (
            f"layer_sharding.token_exchange: model.layers.0.o_proj {reason}; leave it out of "
            "token_exchange"
        )


def test_a_linear_that_the_model_loads_itself_is_refused():
    """Heads that are not split contiguously: only the model knows their order."""
    found = run_child(f"""{MODELS}
def load(param, tensor):
    pass
load.__module__ = "vllm.model_executor.models.strange"
def loaded(prefix):
    made = row(prefix)
    made._parameters["weight"] = nn.Parameter(torch.empty(8, 8))
    made.weight.weight_loader = load
    return made
result = decoder(loaded)""")
    assert "model.layers.0.o_proj is loaded by the model itself" in found


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("AscendW8A8LinearMethod", "adds its bias on the first tensor-parallel rank only"),
        ("AscendW8A8PDMixLinearMethod", "adds its bias on the first tensor-parallel rank only"),
        ("AscendW8A8DynamicLinearMethod", None),
    ],
)
def test_a_bias_rule_by_the_worlds_rank_is_refused(scheme, said):
    """8220: quant_bias was missing on the ranks above 0. The classes are vllm-ascend's names."""
    found = run_child(f"""{MODELS}
class {scheme}:
    pass
class AscendLinearMethod:
    def __init__(self):
        self.quant_method = {scheme}()
def quantised(prefix):
    made = row(prefix)
    made.quant_method = AscendLinearMethod()
    return made
result = decoder(quantised)""")
    if said is None:
        assert found == [WHOLE, WHOLE]
    else:
        assert said in found
        assert f"AscendLinearMethod, {scheme}" in found


def test_a_tower_with_a_linear_of_that_name_is_refused_unless_it_was_built_as_before():
    """10500: towers were matched by name, and ran outside of what the language model has."""
    refused, whole, longer = run_child(f"""{MODELS}
result = [
    outcome(lambda: SeesAndSpeaks(row, row)),
    outcome(lambda: SeesAndSpeaks(row, lambda p: row(p, disable_tp=True))),
    outcome(lambda: SeesAndSpeaks(row, lambda p: row(p.replace("o_proj", "out")))),
]""")
    assert refused == (
        "layer_sharding.token_exchange: eyes.layers.0.o_proj bears the name, too, but is outside "
        "the language model, where ranks do not run together; write a longer suffix that it does "
        "not have, or leave it out"
    )
    mine = [f"language_model.{prefix}" for prefix in WHOLE]
    assert whole == [mine, [f"eyes.layers.{i}.o_proj" for i in range(3)] + mine]
    assert longer == [mine, mine]


def test_vllms_class_is_as_it_was_afterwards_and_a_platforms_own_is_used():
    """Also where the construction fails. A platform's class says its arguments with * only."""
    assert run_child(f"""{MODELS}
def held():
    return {{name: id(value) for name, value in vars(RowParallelLinear).items()}}
before = held()
decoder(row)
def fails(prefix):
    raise KeyError(prefix)
try:
    decoder(fails)
except KeyError:
    pass
unchanged = held() == before
with set_current_vllm_config(VllmConfig()):
    plain = row("model.layers.0.o_proj").disable_tp

@PluggableLayer.register_oot(name="RowParallelLinear")
class Own(RowParallelLinear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
own = dict(vars(Own))
made = decoder(row)
result = [unchanged, plain, made, dict(vars(Own)) == own, held() == before]
""") == [True, False, [WHOLE, WHOLE], True, True]
