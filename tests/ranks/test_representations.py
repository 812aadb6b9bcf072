"""How a module may hold its weight: parameters, buffers or attributes, of any stride, under names.

Real ranks, the manual API, and each module's own forward against the unsharded one's.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gloo.ranks import run_ranks
from vllm_layershard.errors import PlanError
from vllm_layershard.manual import (
    finish_loading,
    reach_layer,
    register_layer,
    wait_layer,
)
from vllm_layershard.runtime.tensors import held, materialise, release, tie

WIDTH, LAYERS = 32, 5


class Transposed(nn.Module):
    """A parameter that is a view: its strides are not contiguous. And a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * WIDTH, WIDTH).t(), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(2 * WIDTH), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Buffers(nn.Module):
    """No parameter at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-99, 99, (WIDTH, WIDTH), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale)


class Attributes(nn.Module):
    """Plain attributes, of two dtypes; two of three tensors are large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(WIDTH, WIDTH).to(torch.float8_e4m3fn)
        self.zeros = torch.randint(0, 9, (WIDTH, WIDTH // 8), dtype=torch.int32)
        self.scale = torch.rand(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * self.scale) + self.zeros.sum(dim=1)


class Named(nn.Module):
    """One parameter under two names, both of which are read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
        self.kernel_weight = self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + x @ self.kernel_weight


def layers_of(kind: type[nn.Module]) -> list[nn.Module]:
    torch.manual_seed(7)
    return [kind() for _ in range(LAYERS)]


WAYS = [{}, {"transport": "pull"}, {"placement": "striped", "slice_bytes": 1000}]


def applied(rank: int, kind: type[nn.Module]) -> list[dict]:
    return [applied_by(rank, kind, way) for way in WAYS]


@torch.inference_mode()
def applied_by(rank: int, kind: type[nn.Module], way: dict) -> dict:
    plain, layers = layers_of(kind), layers_of(kind)
    for layer_id, layer in enumerate(layers):
        register_layer(layer, series="all", layer_id=layer_id, **way)
    series = finish_loading("all", verify=True)
    equal = []
    for forward in range(2):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * rank + forward))
        series.slots.poison()
        for layer, other in zip(layers, plain, strict=True):
            reach_layer(layer)
            wait_layer(layer)
            equal.append(torch.equal(layer(x), other(x)))
    return {
        "equal": equal,
        "moving": {name: tensor.stride() for name, tensor in series.weights(0).items()},
        "held": (series.resident_bytes(), series.slots.nbytes()),
        "ledger": (series.plan.ledger.resident_bytes[rank], series.plan.ledger.slot_bytes),
        "in slots": [
            held(layer)[name].data_ptr() == tensor.data_ptr()
            for position, layer in enumerate(layers)
            for name, tensor in series.weights(position).items()
        ],
    }


@pytest.mark.parametrize(
    ("kind", "moving"),
    [
        (Transposed, {"weight": (1, WIDTH)}),
        (Buffers, {"weight": (WIDTH, 1)}),
        (Attributes, {"weight": (WIDTH, 1), "zeros": (WIDTH // 8, 1)}),
        (Named, {"weight": (WIDTH, 1)}),
    ],
)
def test_every_rank_computes_the_same_as_unsharded(tmp_path, kind, moving):
    for ways in run_ranks(2, applied, tmp_path, kind):
        assert len(ways) == len(WAYS)
        for seen in ways:
            assert seen["equal"] == [True] * (2 * LAYERS)
            assert seen["moving"] == moving
            assert seen["held"] == seen["ledger"]
            assert all(seen["in slots"])


def refusals(rank: int) -> list[str]:
    messages = []

    def message(layer: nn.Module, series: str, layer_id: int) -> None:
        with pytest.raises(PlanError) as error:
            register_layer(layer, series=series, layer_id=layer_id)
        messages.append(str(error.value))

    for owner in (0, 1):  # the first of the two stays on one rank and is released on the other
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        register_layer(first, series=f"tied {owner}", layer_id=owner)
        message(second, f"tied {owner}", owner + 1)
        message(second, "other", 0)
    message(nn.Sequential(nn.Linear(4, 4)), "container", 0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    register_layer(first, series="loaded", layer_id=0)
    register_layer(second, series="loaded", layer_id=1)
    finish_loading("loaded")
    message(first, "again", 0)
    message(second, "again", 1)
    return messages


def test_a_tensor_has_one_owner_on_every_rank(tmp_path):
    for messages in run_ranks(2, refusals, tmp_path):
        *tied, container, first, second = messages
        assert len(tied) == 4
        assert all("shares a tensor with a layer that is registered already" in m for m in tied)
        assert "'container': layer 0 holds no tensor itself" in container
        assert "'again': layer 0 is registered already" in first
        assert "'again': layer 1 is registered already" in second


def test_names_of_one_parameter_stay_one_through_release_and_back():
    module = Named()
    release(module)
    assert module.weight is module.kernel_weight
    assert module.weight.is_meta
    materialise(module, torch.device("cpu"))
    assert module.weight is module.kernel_weight
    assert not module.weight.is_meta


def test_a_parameter_of_two_modules_is_a_tie_and_an_alias_of_a_module_is_none():
    root = nn.Module()
    root.up, root.down = nn.Linear(4, 4), nn.Linear(4, 4)
    root.alias = root.up
    release(root.up)
    assert tie(root, root.up) is None
    root.down.weight = root.up.weight
    assert tie(root, root.up) == "down"
    assert tie(root, root.down) == "up"
