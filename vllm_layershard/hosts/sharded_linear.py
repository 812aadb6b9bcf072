"""What stands in front of a sharded linear's quant method, first to load it, then to serve it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
)

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.linears import describe_linear, is_quantised_while_loaded, method_name
from vllm_layershard.hosts.names import REQUIRES_UNQUANTIZED_INPUT
from vllm_layershard.hosts.patch import lacking
from vllm_layershard.hosts.replicas.raw_weight import RawWeight
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ops import Place


class InFront(LinearMethodBase):  # type: ignore[misc]
    """Stands in front of one linear's own quant method, `inner`.

    It is no subclass of the wrapped method. Fast paths that read `weight` on their own test for the
    class (isinstance or the exact type), and so fall back to `apply`.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not called: a linear creates its weights before it is wrapped."""
        self._inner.create_weights(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # vllm-ascend unwraps any attribute of this name and would bypass `apply`.
        if name in ("quant_method", "_inner"):
            raise AttributeError(name)
        return getattr(self._inner, name)


class LoadingLinearMethod(InFront):
    """The quant method of a linear that is being loaded.

    `adopting` is entered around the adoption, and counts it: see LoadingModel. A weight that passes
    through this rank is `raw`, and may be processed and adopted before the others are loaded.
    """

    def __init__(
        self,
        module: Any,
        series: LoadingSeries,
        position: int,
        adopting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(module.quant_method)
        self._prefix: str = module.prefix
        self._series = series
        self._position = position
        self._adopting = adopting
        self.raw: RawWeight | None = None
        self._as_loaded = describe_linear(module, 0)
        self._method = method_name(module)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Process the weights as usual, and hand the large tensors to the series.

        Collective in a group in lockstep: first the loader sends its parameters to the other ranks.

        Raises:
            HostError: the quant method left no tensor that could be the weight, or one in a format
                of the device's own, or there is no memory that the others can read.
        """
        if self.raw is not None:
            with self._adopting():
                self.raw.finish()
            return
        self._series.receive(self._position, layer)
        self._inner.process_weights_after_loading(layer)
        with self._adopting():
            self._adopt(layer)

    def process_raw(self, layer: torch.nn.Module) -> None:
        """Process the weight that passes through, and hand over what this rank keeps of it.

        Raises:
            HostError: as process_weights_after_loading.
        """
        self._inner.process_weights_after_loading(layer)
        self._adopt(layer)

    def _adopt(self, layer: torch.nn.Module) -> None:
        processed = describe_linear(layer, 0)
        if processed.lost_weight_of(self._as_loaded):
            raise HostError(
                f"{KEY}: {self._prefix}: its quant method ({self._method}) moves the "
                "weight out of the layer's tensors, into memory of a kernel's own, from where "
                "it cannot be sent; leave it out"
            )
        large = tuple(tensor.name for tensor in processed.large)
        self._series.adopt(self._position, layer, large)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Not called: no forward runs before all linears are loaded."""
        raise AssertionError(f"{self._prefix} runs before it is loaded")


class ShardedLinearMethod(InFront):
    """The quant method of a loaded linear: waits for the weight before it applies.

    Or a module that calls the linear does so at its entry: see the note [Waits ahead of an op] in
    hosts/graphs/hidden.py.
    """

    def __init__(self, inner: Any, prefix: str, place: Place) -> None:
        super().__init__(inner)
        self._key = prefix
        self._place = place
        self._waiting: str | None = None
        """The class of the module that waits in its place."""
        self.has_run = False
        """Whether it was seen to run where another module waits; a compiler hides it."""

    @property
    def waits_itself(self) -> bool:
        """Whether the weight is waited for here, and not ahead."""
        return self._waiting is None

    def waited_for_by(self, block: torch.nn.Module) -> str:
        """From now on `block` waits for the weight. Returns the key to wait for."""
        self._waiting = type(block).__name__
        return self._key

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Process the weights of a reload as usual, and serve them from now on.

        Not collective: vLLM has given the layer its new weights on every rank, in the order of the
        checkpoint.

        Raises:
            HostError: a new tensor is in a format of the device's own.
        """
        self._inner.process_weights_after_loading(layer)
        self._place.series.reload(self._place.position, layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Wait for the weight, then do what the wrapped method does.

        Raises:
            HostError: another module was to wait for it, and has not.
        """
        if self._waiting is None:
            # CUDA kernels that quantise as they activate hand over a QuantizedActivation.
            data = x if isinstance(x, torch.Tensor) else x.data
            ops.wait(data, self._key)
        elif not torch.compiler.is_compiling():
            self._require_arrived()
            self.has_run = True
        return self._inner.apply(layer, x, bias)

    def _require_arrived(self) -> None:
        if not self._place.has_arrived():
            raise HostError(
                f"{KEY}: {self._key} runs where its weight was not waited for: {self._waiting} "
                "waits for it at its entry, and was not entered before; leave it out"
            )


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
    if is_quantised_while_loaded(module):
        raise HostError(
            f"{KEY}: {module.prefix} is quantised while it is loaded ({method_name(module)}), on "
            "every rank; serve a checkpoint that is quantised already"
        )
    if module.prefix.rpartition(".")[2] == "o_proj" and _gathers_o_proj():
        raise HostError(
            f"{KEY}: {module.prefix} is gathered by vllm-ascend itself (DSA-CP), from the weight "
            "as it was loaded, and would be gathered from another layer's; leave o_proj out "
            "(q_b_proj is whole there and can be shared)"
        )


def _gathers_o_proj() -> bool:
    """Whether vllm-ascend splits sparse attention over tokens. It has asked itself by now.

    Source: vllm-ascend 0.23 to 0.30, utils.py, `enable_dsa_cp`; attention/sfa_v1.py.

    Raises:
        HostError: this version of vllm-ascend cannot be asked.
    """
    if "vllm_ascend" not in sys.modules:
        return False
    own = getattr(sys.modules.get("vllm_ascend.utils"), "enable_dsa_cp", None)
    if own is None:
        raise lacking("vllm_ascend", "vllm_ascend.utils.enable_dsa_cp", "0.29 to 0.30")
    return bool(own())


def put_in_front(module: Any, method: LoadingLinearMethod) -> None:
    """Put the method in front of the module's own while it is loaded."""
    if isinstance(module.quant_method, UnquantizedLinearMethod):
        # vLLM's CPU backend packs the weight into an opaque handle unless this is set (0.32, 0.33).
        # Quantised kernels read it, too, and would choose another path: they are left as they are.
        module._cpu_skip_gemm_dispatch = True
    set_method(module, method)


def serve_through(module: Any, place: Place) -> None:
    """From now on the module's linear waits for its weight at this place."""
    set_method(module, ShardedLinearMethod(module.quant_method._inner, module.prefix, place))


def set_method(module: Any, method: LinearMethodBase) -> None:
    """Give the module this quant method."""
    module.quant_method = method
    custom_op = getattr(module, "custom_op", None)
    if custom_op is not None and hasattr(custom_op, "update_attrs"):
        custom_op.update_attrs()  # vllm-ascend's copy of the module's quant method


def take_plain_tensors(module: Any) -> None:
    """Have vLLM give a linear what is no quantised activation, by its own switch: tokens move.

    Raises:
        HostError: vLLM has no such switch.
    """
    REQUIRES_UNQUANTIZED_INPUT.of(LinearBase)
    module.requires_unquantized_input = True
