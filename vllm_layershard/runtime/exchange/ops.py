"""The two ops of a token exchange that a compiler sees, and what is bound to their keys.

`layershard::exchange(x, size, linear)` stands before a whole linear, and `layershard::gather(x,
rows, linear)` behind it. Both return new memory and change nothing.
"""

from __future__ import annotations

import torch
from torch.compiler import is_dynamo_compiling

from vllm_layershard.runtime.exchange.tokens import TokenExchange, share_of

_LIBRARY = torch.library.Library("layershard", "FRAGMENT")
_FIXED = (torch.Tag.needs_fixed_stride_order,)
_LIBRARY.define("exchange(Tensor x, int size, str linear) -> Tensor", tags=_FIXED)
_LIBRARY.define("gather(Tensor x, SymInt rows, str linear) -> Tensor", tags=_FIXED)

_exchanges: dict[str, TokenExchange] = {}


def bind_exchange(linear: str, exchange: TokenExchange) -> None:
    """Bind a linear to its exchange; one of a former model under the same name is forgotten."""
    _exchanges[linear] = exchange


def _exchange(x: torch.Tensor, size: int, linear: str) -> torch.Tensor:
    return _exchanges[linear].exchange(x)


def _gather(x: torch.Tensor, rows: int, linear: str) -> torch.Tensor:
    return _exchanges[linear].gather(x, rows)


def exchange(x: torch.Tensor, size: int, linear: str) -> torch.Tensor:
    """The op where a compiler looks on, else its work: see [The short way] in runtime/ops.py."""
    if is_dynamo_compiling():
        seen: torch.Tensor = torch.ops.layershard.exchange(x, size, linear)
        return seen
    return _exchange(x, size, linear)


def gather(x: torch.Tensor, rows: int, linear: str) -> torch.Tensor:
    """Likewise."""
    if is_dynamo_compiling():
        seen: torch.Tensor = torch.ops.layershard.gather(x, rows, linear)
        return seen
    return _gather(x, rows, linear)


def _exchange_fake(x: torch.Tensor, size: int, linear: str) -> torch.Tensor:
    return x.new_empty((share_of(x.shape[0], size), size * x.shape[1]))


def _gather_fake(x: torch.Tensor, rows: int, linear: str) -> torch.Tensor:
    return x.new_empty((rows, x.shape[1]))


_LIBRARY.impl("exchange", _exchange, "CompositeExplicitAutograd")
_LIBRARY.impl("gather", _gather, "CompositeExplicitAutograd")
torch.library.register_fake("layershard::exchange", _exchange_fake, lib=_LIBRARY)
torch.library.register_fake("layershard::gather", _gather_fake, lib=_LIBRARY)
