"""RawWeight: a weight as the checkpoint has it, on a rank that stores none of it, or a stripe.

Note [One raw weight at a time]
Replicas send each other nothing while they load, and a quant method may derive scales from the
weight. So each replica reads every weight. vLLM loads the whole model before it processes any of
it, by which a replica would hold all raw weights at once. Here a linear that the rank does not
store whole keeps its parameters on the meta device while its parts arrive. They are noted, and not
copied: of a safetensors file they are pages of the file. Once all parts are there, and vLLM gives
a part to another such linear, the first one gets memory, is loaded, processed, and let go of.
vLLM's own reload works in the same way, layer by layer (model_loader/reload/layerwise.py).
A linear of which the checkpoint lacks a part is processed in its turn among the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.model_executor.model_loader.weight_utils import (
    default_weight_loader,
    initialize_single_dummy_weight,
)

from vllm_layershard.hosts.replicas.written import Written
from vllm_layershard.runtime.tensors import held, materialise


class Part(NamedTuple):
    """What vLLM has given to the loader of one parameter, once, beside the parameter itself."""

    parameter: str
    given: tuple[Any, ...]
    named: dict[str, Any]


class RawWeight:
    """Notes the parts of one linear's parameters; `finish` loads and processes them, once.

    `process` gets the module with its parameters loaded, and takes over what remains of them.
    """

    def __init__(
        self, weights: RawWeights, module: nn.Module, process: Callable[[nn.Module], None]
    ) -> None:
        self._weights = weights
        self._module = module
        self._process = process
        self._parts: list[Part] = []
        self._loaders: dict[str, Any] = {}
        self._missing: dict[str, int] = {}
        self._is_finished = False
        for name, parameter in held(module).items():
            if isinstance(parameter, nn.Parameter) and parameter.is_meta:
                self._missing[name] = getattr(parameter, "weight_loader_numel", parameter.numel())
                self._note_parts(name, parameter)

    def _note_parts(self, name: str, parameter: Any) -> None:
        self._loaders[name] = loader = getattr(parameter, "weight_loader", default_weight_loader)

        @wraps(loader)
        def note(param: torch.Tensor, *given: Any, **named: Any) -> Any:
            with Written() as written:
                returned = loader(param, *given, **named)
            self._parts.append(Part(name, given, named))
            self._missing[name] -= written.elements
            self._weights.noted(self)
            return returned

        parameter.weight_loader = note

    @property
    def is_whole(self) -> bool:
        """Whether each parameter was given as many elements as it has."""
        return all(missing <= 0 for missing in self._missing.values())

    def finish(self) -> None:
        """Load and process what was given, unless it has been done."""
        if self._is_finished:
            return
        self._is_finished = True
        parameters = held(self._module)
        for name, loader in self._loaders.items():
            parameters[name].weight_loader = loader  # type: ignore[attr-defined]
        materialise(self._module, self._weights.device)
        loaded = held(self._module)
        with torch.no_grad():
            for name in self._loaders if self._weights.random else ():
                _make_random(loaded[name], name)
            for part in self._parts:
                self._loaders[part.parameter](loaded[part.parameter], *part.given, **part.named)
        self._parts.clear()
        del parameters, loaded
        self._process(self._module)


def _make_random(parameter: torch.Tensor, name: str) -> None:
    """As vLLM's loader makes it. From 0.33 on the name tells a scale from packed weights."""
    named = "name" in signature(initialize_single_dummy_weight).parameters
    initialize_single_dummy_weight(parameter, **({"name": name} if named else {}))


class RawWeights:
    """Those of one rank. At most one of them is whole and not processed.

    `telling` is entered around what happens while vLLM loads. `random` weights are made, not read.
    """

    def __init__(
        self,
        device: torch.device,
        telling: Callable[[], AbstractContextManager[None]],
        *,
        random: bool,
    ) -> None:
        self.device = device
        self.random = random
        self._telling = telling
        self._whole: RawWeight | None = None

    def take(self, module: nn.Module, process: Callable[[nn.Module], None]) -> RawWeight:
        """From now on note what the loaders of the module's parameters are given."""
        return RawWeight(self, module, process)

    def noted(self, weight: RawWeight) -> None:
        """Finish the weight that was whole before, if this is another one."""
        if self._whole is not None and self._whole is not weight:
            with self._telling():
                self._whole.finish()
            self._whole = None
        if weight.is_whole:
            self._whole = weight
