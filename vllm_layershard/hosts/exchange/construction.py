"""While a model is built: linears that are whole on every rank, for a token exchange."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_layershard.hosts.patch import Patch

if TYPE_CHECKING:
    from vllm_layershard.hosts.exchange.whole_linears import WholeLinears

_asking: WholeLinears | None = None
"""What the model that is being built is to have whole."""


def _building_whole(original: Callable[..., None]) -> Callable[..., None]:
    from vllm.model_executor.layers.linear import RowParallelLinear

    # A platform's own class takes the same arguments, and may say so with *args only.
    signature = inspect.signature(RowParallelLinear.__init__)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        whole = _asking
        assert whole is not None, "in force only while a model is built"
        asked = signature.bind(self, *args, **kwargs)
        asked.apply_defaults()
        is_named = whole.is_named(asked.arguments["prefix"])
        fault = whole.fault_in(asked.arguments) if is_named else None
        whole_too = {"disable_tp": True} if is_named and fault is None else {}
        original(self, *args, **kwargs | whole_too)
        if is_named:
            whole.note(self, fault)

    return __init__


PATCHES = (
    Patch(
        module="vllm.model_executor.layers.linear",
        owner="RowParallelLinear",
        attribute="__init__",
        versions="0.29 to 0.33",
        reason="a linear before which tokens are exchanged is whole on every tensor-parallel rank, "
        "which vLLM builds with `disable_tp`; the model's code does not ask for it",
        removal="vLLM lets plugins choose `disable_tp` by a linear's name",
        wrap=_building_whole,
    ),
)
"""In force while a model with a token exchange is built, and gone afterwards."""


@contextmanager
def building(whole: WholeLinears) -> Iterator[None]:
    """While entered, what `whole` names is built whole, by vLLM's class or the platform's own."""
    global _asking
    if not whole.names:
        yield
        return
    from vllm.model_executor.custom_op import maybe_get_oot_by_class
    from vllm.model_executor.layers.linear import RowParallelLinear

    (patch,) = PATCHES
    _asking = whole
    try:
        with patch.in_force(maybe_get_oot_by_class(RowParallelLinear)):
            yield
    finally:
        _asking = None
