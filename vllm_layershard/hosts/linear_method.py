"""ShardedLinearMethod: a quant method whose layer's weight may live on another rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import LinearMethodBase

if TYPE_CHECKING:
    from vllm_layershard.hosts.sharded_linear import ShardedLinear


class ShardedLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Wraps the quant method of one linear: waits before it applies, loads from the owner.

    It is no subclass of the wrapped method, so that fast paths which read `weight` on their own
    (isinstance or exact-type checks) fall back to `apply`.
    """

    def __init__(self, inner: Any, linear: ShardedLinear) -> None:
        self._inner = inner
        self._linear = linear
        self._key = linear.key

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not called: a linear creates its weights before it is wrapped."""
        self._inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Process the weights as usual and hand them over.

        While the model is loaded this is collective: the others receive the owner's parameters
        first. In a reload it is not: vLLM has given the layer its new weights on every rank, in the
        order of the checkpoint.
        """
        if self._linear.is_served():
            self._inner.process_weights_after_loading(layer)
            self._linear.renew()
            return
        self._linear.receive()
        self._inner.process_weights_after_loading(layer)
        self._linear.adopt()

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Wait for the weight, then do what the wrapped method does."""
        torch.ops.layershard.wait(x, self._key)
        return self._inner.apply(layer, x, bias)

    def __getattr__(self, name: str) -> Any:
        # vllm-ascend unwraps any attribute of this name and would bypass `apply`.
        if name in ("quant_method", "_inner"):
            raise AttributeError(name)
        return getattr(self._inner, name)
