"""ShardedLinearMethod: a linear's quant method, where the linear's weight may live elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.linears import describe_linear, method_name
from vllm_layershard.runtime.ops import Place
from vllm_layershard.runtime.series import State


class ShardedLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Wraps the quant method of one linear: waits before it applies, loads from the owner.

    It is no subclass of the wrapped method. Fast paths that read `weight` on their own test for the
    class (isinstance or the exact type), and so fall back to `apply`.
    `adopting` is entered around the adoption, and counts it: see ShardedModel.
    """

    def __init__(
        self, module: Any, place: Place, adopting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._inner = module.quant_method
        self._key: str = module.prefix
        self._place = place
        self._adopting = adopting
        self._as_loaded = describe_linear(module, 0)
        self._method = method_name(module)

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not called: a linear creates its weights before it is wrapped."""
        self._inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Process the weights as usual, and hand the large tensors to the series.

        While the model is loaded this is collective: first the owner sends its loaded parameters to
        the other ranks. In a reload it is not: vLLM has given the layer its new weights on every
        rank, in the order of the checkpoint.

        Raises:
            HostError: the quant method left no tensor that could be the weight, or one in a format
                of the device's own, or there is no memory that the others can read.
        """
        series, position = self._place.series, self._place.position
        if series.state is State.READY:
            self._inner.process_weights_after_loading(layer)
            series.reload(position, layer)
            return
        series.receive(position, layer)
        self._inner.process_weights_after_loading(layer)
        with self._adopting():
            self._adopt(layer)

    def _adopt(self, layer: torch.nn.Module) -> None:
        processed = describe_linear(layer, 0)
        if processed.lost_weight_of(self._as_loaded):
            raise HostError(
                f"{KEY}: {self._key}: its quant method ({self._method}) moves the "
                "weight out of the layer's tensors, into memory of a kernel's own, from where it "
                "cannot be sent; leave it out"
            )
        large = tuple(tensor.name for tensor in processed.large)
        self._place.series.adopt(self._place.position, layer, large)

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


def check_linear(module: Any) -> None:
    """Refuse a linear whose weight is read or made other than through its quant method.

    Raises:
        HostError: names the linear.
    """
    if getattr(module, "_use_min_latency_gemm", False):
        raise HostError(
            f"{KEY}: {module.prefix} uses vLLM's min-latency GEMM, which reads its weight outside "
            "the quant method; leave it out"
        )
    if getattr(module.quant_method, "uses_meta_device", False):
        raise HostError(
            f"{KEY}: {module.prefix} is quantised while it is loaded ({method_name(module)}), on "
            "every rank; serve a checkpoint that is quantised already"
        )


def wrap(module: Any, place: Place, adopting: Callable[[], AbstractContextManager[None]]) -> None:
    """Put the sharded method in front of the module's own."""
    if isinstance(module.quant_method, UnquantizedLinearMethod):
        # vLLM's CPU backend packs the weight into an opaque handle unless this is set (0.32, 0.33).
        # Quantised kernels read it, too, and would choose another path: they are left as they are.
        module._cpu_skip_gemm_dispatch = True
    module.quant_method = ShardedLinearMethod(module, place, adopting)
    custom_op = getattr(module, "custom_op", None)
    if custom_op is not None and hasattr(custom_op, "update_attrs"):
        custom_op.update_attrs()  # vllm-ascend's copy of the module's quant method
