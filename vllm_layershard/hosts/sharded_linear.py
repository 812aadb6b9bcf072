"""ShardedLinear: one of vLLM's linears, from its construction to its place in a series."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.linear_method import ShardedLinearMethod
from vllm_layershard.hosts.linears import describe_linear, method_name
from vllm_layershard.runtime.ops import Place
from vllm_layershard.runtime.series import State


class ShardedLinear:
    """One linear on its way from construction to its place in a series.

    What is done within `adopting` counts it in: see ShardedModel.
    """

    def __init__(
        self, module: Any, place: Place, adopting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.module = module
        self.key: str = module.prefix
        self._place = place
        self._adopting = adopting
        self._as_loaded = describe_linear(module, 0)
        self._method = method_name(module)

    def is_served(self) -> bool:
        """Whether loading is over, so that other weights can only come from a reload."""
        return self._place.series.state is State.READY

    def renew(self) -> None:
        """After a reload on every rank: serve the newly processed weights."""
        self._place.series.renew(self._place.position, self.module)

    def receive(self) -> None:
        """Fill the parameters from the owner's. Collective."""
        self._place.series.receive(self._place.position, self.module)

    def adopt(self) -> None:
        """Hand the processed large tensors to the series.

        Raises:
            HostError: the quant method left no tensor that could be the weight, or one in a format
                of the device's own, or there is no memory that the others can read.
        """
        with self._adopting():
            self._adopt()

    def _adopt(self) -> None:
        processed = describe_linear(self.module, 0)
        if processed.lost_weight_of(self._as_loaded):
            raise HostError(
                f"{KEY}: {self.key}: its quant method ({self._method}) moves the "
                "weight out of the layer's tensors, into memory of a kernel's own, from where it "
                "cannot be sent; leave it out"
            )
        large = tuple(tensor.name for tensor in processed.large)
        self._place.series.adopt(self._place.position, self.module, large)


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


def wrap(module: Any, linear: ShardedLinear) -> None:
    """Put the sharded method in front of the module's own."""
    if isinstance(module.quant_method, UnquantizedLinearMethod):
        # vLLM's CPU backend packs the weight into an opaque handle unless this is set (0.32, 0.33).
        # Quantised kernels read it, too, and would choose another path: they are left as they are.
        module._cpu_skip_gemm_dispatch = True
    module.quant_method = ShardedLinearMethod(module.quant_method, linear)
    custom_op = getattr(module, "custom_op", None)
    if custom_op is not None and hasattr(custom_op, "update_attrs"):
        custom_op.update_attrs()  # vllm-ascend's copy of the module's quant method
