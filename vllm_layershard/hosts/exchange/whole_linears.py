"""WholeLinears: what was built whole for a token exchange, and why others cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import nn

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.linears import layer_of, method_name
from vllm_layershard.hosts.sharded_linear import check_linear
from vllm_layershard.plan import Linear

_RANK_RULES: Final = {"AscendW8A8LinearMethod", "AscendW8A8PDMixLinearMethod"}
"""They add their bias on the world's tensor-parallel rank 0 only, whole as the linear may be.
Source: vllm-ascend at 050dec9, quantization/method_adapters.py and methods/w8a8_static.py."""


class WholeLinears:
    """Filled while a model is built: row-parallel linears of these names, of its numbered layers.

    `size` tensor-parallel ranks exchange tokens before them. One that cannot be whole is built as
    it was asked for, and refused once it is known to be the language model's.
    """

    def __init__(self, names: Sequence[str], num_layers: int, size: int) -> None:
        self.size = size
        self.names = names
        self._num_layers = num_layers
        self._built: dict[int, Any] = {}
        self._faults: dict[int, str] = {}

    def is_named(self, prefix: str) -> bool:
        """Whether a linear of this prefix is asked for; draft layers, behind the others, are not.

        So a drafter within the model runs as it does without us.
        """
        layer_id = layer_of(prefix)
        if layer_id is None or layer_id >= self._num_layers:
            return False
        return any(f".{prefix}".endswith(f".{name}") for name in self.names)

    def fault_in(self, asked: Mapping[str, Any]) -> str | None:
        """Why a linear that is constructed with these arguments cannot be whole, or None."""
        if asked["disable_tp"]:
            return "is whole already, and its input is not split over ranks"
        if not asked["input_is_parallel"]:
            return "is given all columns on every rank, and splits them itself"
        if not asked["reduce_results"]:
            return "leaves its partial sums (reduce_results=False) to code that is not known"
        if asked["input_size"] % self.size:
            return (
                f"has an input of {asked['input_size']} columns, which {self.size} tensor-parallel "
                "ranks do not split evenly"
            )
        return None

    def note(self, module: nn.Module, fault: str | None) -> None:
        """The module has been built: whole, or as it was asked for, with its fault."""
        self._built[id(module)] = module
        if fault is not None:
            self._faults[id(module)] = fault

    def checked(
        self,
        model: nn.Module,
        named: Iterable[Sequence[Linear]],
        modules: Mapping[str, nn.Module],
    ) -> list[Any]:
        """The linears before which tokens are exchanged: all of `named`.

        `named` are the language model's linears of each name, `modules` all of its linears by
        prefix.

        Raises:
            HostError: one of them cannot be whole, or is read other than through its quant method,
                or another part of the model has one.
        """
        mine = [modules[linear.prefix] for linears in named for linear in linears]
        for module in mine:
            check_linear(module)
            fault = self._fault_of(module)
            if fault is not None:
                raise HostError(
                    f"{KEY}.token_exchange: {module.prefix} {fault}; leave it out of token_exchange"
                )
        language = {id(module) for module in modules.values()}
        for module in model.modules():
            is_whole = id(module) in self._built and id(module) not in self._faults
            if is_whole and id(module) not in language:
                raise HostError(
                    f"{KEY}.token_exchange: {module.prefix} bears the name, too, but is outside "
                    "the language model, where ranks do not run together; write a longer suffix "
                    "that it does not have, or leave it out"
                )
        return mine

    def _fault_of(self, module: Any) -> str | None:
        if id(module) in self._faults:
            return self._faults[id(module)]
        if id(module) not in self._built:
            return f"is a {type(module).__name__}, which vLLM does not split by its input's columns"
        loaders = (getattr(param, "weight_loader", None) for param in module.parameters())
        for loader in loaders:
            if ".models." in getattr(loader, "__module__", ""):
                return (
                    "is loaded by the model itself, so that its columns may be in another order "
                    "than the ranks"
                )
        scheme = getattr(module.quant_method, "quant_method", module.quant_method)
        if _RANK_RULES & {each.__name__ for each in type(scheme).__mro__}:
            return (
                f"is quantised by a method ({method_name(module)}, {type(scheme).__name__}) that "
                "adds its bias on the first tensor-parallel rank only"
            )
        return None
