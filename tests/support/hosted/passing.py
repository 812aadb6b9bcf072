"""Linears whose weights pass through a rank, without vLLM's model around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vllm_layershard.hosts.replicas.raw_weight import RawWeight, RawWeights
from vllm_layershard.runtime.tensors import release

CPU = torch.device("cpu")


class Passing:
    """Linears of two weight parts and a scale, loaded as vLLM loads a fused one."""

    def __init__(self, *names: str, random: bool = False) -> None:
        self.happened: list[str] = []
        self.refused = False
        self.seen: dict[str, list[float]] = {}
        self.weights = RawWeights(CPU, self.telling, random=random)
        self.modules = {name: self.module(name) for name in names}
        self.parameters = {name: dict(m.named_parameters()) for name, m in self.modules.items()}
        self.raw = {name: self.taken(name) for name in names}

    @contextmanager
    def telling(self) -> Iterator[None]:
        self.happened.append("while loading")
        try:
            yield
        except ValueError as error:
            self.happened.append(f"told: {error}")
            raise

    def module(self, name: str) -> nn.Module:
        module = nn.Module()
        module.weight = nn.Parameter(torch.zeros(4, 2), requires_grad=False)
        module.scale = nn.Parameter(torch.zeros(1), requires_grad=False)
        module.weight.weight_loader = lambda param, loaded, half: param.data[
            2 * half : 2 * half + 2
        ].copy_(loaded)
        release(module)
        return module

    def taken(self, name: str) -> RawWeight:
        def process(module: nn.Module) -> None:
            if self.refused:
                raise ValueError("no room")
            self.happened.append(name)
            self.seen[name] = [*module.weight[:, 0].tolist(), module.scale.item()]

        raw = self.weights.take(self.modules[name], process)
        self.parameters[name] = dict(self.modules[name].named_parameters())
        return raw

    def give(self, name: str, part: str, value: float) -> None:
        """As a model does: with the loader of the parameter that it found before it loaded any."""
        if part == "scale":
            parameter = self.parameters[name]["scale"]
            parameter.weight_loader(parameter, torch.tensor(value))
        else:
            parameter = self.parameters[name]["weight"]
            parameter.weight_loader(parameter, torch.full((2, 2), value), int(part))
