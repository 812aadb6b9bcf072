"""The op of a linear before which a forward waits for the weight, or sends its tokens away.

`layershard::linear(x, bias, out, order, linear)` writes to `out`, [n, D_out], what the linear makes
of `x`, [n, D_in]; n are the tokens of this rank. What is gathered within has a size that depends on
the other ranks, and no compiler sees it.

Note [Whose memory]
Where captured graphs end at the op it is run anew each time, and what it returned would be other
memory than the next graph has read from. So the caller makes room for the result, in the graph.

Note [One order for all]
Ranks that move tokens must come to the linears in one order, and to each of them. Two linears may
depend on nothing of each other's, and a result without rows is read by nobody: a compiler might
swap them, or leave one out, on a rank with other sizes. So all ops declare one tensor as mutated,
and leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.compiler import is_dynamo_compiling

from vllm_layershard.runtime.moves.linear import MovedLinear

_LIBRARY = torch.library.Library("layershard", "FRAGMENT")
_LIBRARY.define(
    "linear(Tensor x, Tensor? bias, Tensor(a!) out, Tensor(b!) order, str linear) -> ()",
    tags=(torch.Tag.needs_fixed_stride_order,),
)

_linears: dict[str, MovedLinear] = {}


def bind_linear(linear: MovedLinear) -> None:
    """Bind the op to this linear; one of a former model under the same name is forgotten."""
    _linears[linear.name] = linear


@cache
def order_on(device: torch.device) -> torch.Tensor:
    """What all ops on the device are given as `order`."""
    return torch.zeros(1, device=device)


def _compute(linear: str, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """What the op does. It is named apart from it, so that a host may put itself around it."""
    _linears[linear](x, bias, out)


Work = Callable[..., None]

_work: dict[str, Work] = {"linear": _compute}


def run_linears_within(around: Callable[[Work], Work]) -> None:
    """From now on the work of the op is what `around` makes of it; see runtime/ops.py."""
    _work["linear"] = around(_compute)


def _linear(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    order: torch.Tensor,
    linear: str,
) -> None:
    _work["linear"](linear, x, bias, out)


def linear(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    order: torch.Tensor,
    key: str,
) -> None:
    """The op where a compiler looks on, else its work: see [The short way] in runtime/ops.py."""
    if is_dynamo_compiling():
        torch.ops.layershard.linear(x, bias, out, order, key)
    else:
        _linear(x, bias, out, order, key)


_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake(
    "layershard::linear", lambda x, bias, out, order, linear: None, lib=_LIBRARY
)
