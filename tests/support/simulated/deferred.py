"""Deferred: operations on tensors go to the accelerator's current stream instead of running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from simulated.streams import Accelerator
from vllm_layershard.runtime import ops, split_mlp
from vllm_layershard.runtime.exchange import ops as exchange
from vllm_layershard.runtime.moves import ops as moves

_HOST_CODE = {
    torch.ops.layershard.reach.default: ops._reach,
    torch.ops.layershard.wait.default: ops._wait,
    torch.ops.layershard.exchange.default: exchange._exchange,
    torch.ops.layershard.gather.default: exchange._gather,
    torch.ops.layershard.ffn.default: split_mlp._ffn,
    torch.ops.layershard.linear.default: moves._linear,
}


class Deferred(TorchDispatchMode):
    """While it is active. A view is made at once; what a kernel will say is NaN until it has run.

    What needs a value on the host synchronizes first, as a device does. The product's own ops are
    host code, whose tensors' operations are deferred in turn.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "layershard":
            with self:
                return _HOST_CODE[func](*args, **kwargs)
        if func.is_view and _shares((said := func(*args, **kwargs)), (args, kwargs)):
            return said
        stream = self._accelerator.current_stream()
        if func._schema.is_mutable:
            stream.give(lambda: _run(func, args, kwargs))
            return _written(func, args, kwargs)
        said = func(*args, **kwargs)  # of what is there now: its shape is right
        tensors = [one for one in tree_flatten(said)[0] if isinstance(one, torch.Tensor)]
        if not tensors:
            self._accelerator.synchronize()
            return func(*args, **kwargs)
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        stream.give(lambda: _fill(tensors, func, args, kwargs))
        return said


def _shares(said: Any, given: Any) -> bool:
    """Whether it is of memory that was given: `contiguous` and `reshape` may copy instead."""
    mine, theirs = (
        {one.untyped_storage()._cdata for one in tree_flatten(each)[0] if torch.is_tensor(one)}
        for each in (said, given)
    )
    return mine <= theirs


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    func(*args, **kwargs)


def _fill(
    tensors: Sequence[torch.Tensor], func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    said = tree_flatten(func(*args, **kwargs))[0]
    for tensor, value in zip(tensors, said, strict=True):
        tensor.copy_(value)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What an op returns that writes: the arguments that it writes, if it returns anything."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given |= kwargs
    written = [
        given[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    returned = written[: len(func._schema.returns)]
    return None if not returned else returned[0] if len(returned) == 1 else tuple(returned)
