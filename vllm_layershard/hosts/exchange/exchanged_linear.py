"""ExchangedLinearMethod: exchanges tokens before a whole linear, and gathers its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from vllm_layershard.hosts.sharded_linear import InFront, set_method, take_plain_tensors
from vllm_layershard.runtime.exchange.ops import bind_exchange, exchange, gather
from vllm_layershard.runtime.exchange.tokens import TokenExchange
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.stats import Counters


class ExchangedLinearMethod(InFront):
    """The quant method of a whole linear, of which each tensor-parallel rank computes some rows.

    It stands in front of the method that waits for the weight, if it is sharded, so that a weight
    has until after the exchange to arrive.
    """

    def __init__(self, inner: Any, prefix: str, size: int) -> None:
        super().__init__(inner)
        self._key = prefix
        self._size = size

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As without an exchange: the weight is whole on every rank."""
        self._inner.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """From this rank's columns of all tokens to all results of all tokens. Collective.

        vLLM's Transformers backend has a dimension more, in front of the tokens.
        """
        tokens = x.flatten(0, -2)
        rows = exchange(tokens, self._size, self._key)
        found = self._inner.apply(layer, rows, bias)
        gathered = gather(found, tokens.shape[0], self._key)
        return gathered.unflatten(0, x.shape[:-1])


def exchange_before(linears: Sequence[Any], counters: Mapping[str, Counters]) -> None:
    """From now on tokens are exchanged before these linears, over vLLM's tensor-parallel ranks.

    `counters` are those of the sharded ones' series, by prefix.
    """
    if not linears:
        return
    world = get_tp_group()
    group = RankGroup(tuple(world.ranks), world.rank_in_group, world.device_group, world.cpu_group)
    for module in linears:
        count = counters.get(module.prefix, Counters())
        exchange = TokenExchange(group, module.prefix, module.input_size, count)
        bind_exchange(module.prefix, exchange)
        take_plain_tensors(module)
        set_method(module, ExchangedLinearMethod(module.quant_method, module.prefix, group.size))
