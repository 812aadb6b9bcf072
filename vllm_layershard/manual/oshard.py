"""Flashcomm2OShardManager: the names by which vllm-ascend shared its o_proj, on LayerSharding.

    manager.register_layer(layer)            # as it is built; the layer has a `prefix`
    ...                                      # load the weights
    manager.post_process_after_loading()
    manager.trigger_broadcast_for_layer(prefix)   # ahead of it, in its layer's forward
    layer(x)                                 # waits by itself

Signatures: vllm-ascend v0.23.0, ops/flashcomm2_oshard_manager.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any
from weakref import WeakValueDictionary

import torch.distributed as dist
from torch import nn

from vllm_layershard.config import short
from vllm_layershard.errors import PlanError
from vllm_layershard.manual.arguments import check_layer
from vllm_layershard.manual.sharding import LayerSharding

_SERIES = "o_proj"


class Flashcomm2OShardManager:
    """The shared o_proj of one model, known by their prefixes (`model.layers.3.self_attn.o_proj`).

    `group` is the process group that shares (None: the world). A layer whose index is
    `num_hidden_layers` or more belongs to a draft model, and stays whole on every rank. It may be
    set until the first layer is registered.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, num_hidden_layers: int | None = None
    ) -> None:
        self._group = group
        self.num_hidden_layers = num_hidden_layers
        self._sharding: LayerSharding | None = None
        self._layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
        self._loaded = False

    def flashcomm2_oshard_enable(self) -> bool:
        """Whether this rank has another to share with; False before init_process_group, too."""
        return dist.is_initialized() and dist.get_world_size(self._group) > 1

    def register_layer(self, layer: nn.Module, prefetch_step: int = 1) -> None:
        """Share the layer, whose forward waits for its weight from now on.

        Its memory is released on every rank but the one that is to load it.

        Raises:
            PlanError: the layer has no prefix with one layer index, is registered already or comes
                after post_process_after_loading, or with another prefetch_step than the first.
            ConfigError: prefetch_step is not valid.
        """
        check_layer(layer, "register_layer")
        prefix = getattr(layer, "prefix", None)
        _, index = _block_of(prefix)
        if self._is_draft(index):
            return
        if self._loaded:
            raise PlanError(
                f"{prefix} is registered after post_process_after_loading; do so before"
            )
        sharding = self._sharding
        if sharding is None:
            sharding = LayerSharding(group=self._group, prefetch_step=prefetch_step)
        elif prefetch_step != sharding.config.prefetch_step:
            raise PlanError(
                f"{prefix} comes with prefetch_step {short(prefetch_step)}, and the layers before "
                f"it with {sharding.config.prefetch_step}; give all the same"
            )
        sharding.add(layer, layer_id=index, series=_SERIES)
        self._sharding = sharding
        self._layers[index] = layer
        forward = layer.forward

        def waiting(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._wait(layer)
            return forward(*args, **kwargs)

        # A copy of the layer gets the method bound to itself, which is registered nowhere.
        layer.forward = MethodType(waiting, layer)

    def get_layer(self, layer_idx: int) -> nn.Module | None:
        """The registered layer of an absolute layer index, or None."""
        return self._layers.get(layer_idx)

    def trigger_broadcast_for_layer(self, layer_prefix: str) -> None:
        """In a layer's forward, ahead of its o_proj: start the movements that are due there.

        `layer_prefix` is the name of any part of that layer. Of a draft layer nothing moves.

        Raises:
            PlanError: no layer of that prefix is registered, or its weights are not loaded yet.
            TransportError: a rank of the group is gone.
        """
        block, index = _block_of(layer_prefix)
        if self._is_draft(index):
            return
        layer = self._layers.get(index)
        if layer is None or _block_of(layer.prefix)[0] != block:
            raise PlanError(
                f"trigger_broadcast_for_layer: {layer_prefix} is in no registered layer; those "
                f"registered are: {_listed(str(known.prefix) for known in self._in_order())}"
            )
        self._require_loaded(layer_prefix, "triggered").start(layer)

    def post_process_after_loading(self, *, verify: bool = False) -> None:
        """The weights are loaded, and move from here on. Collective; see LayerSharding.finish.

        Without a registered layer, and from the second call on, it does nothing.

        Raises:
            LayerShardError: what LayerSharding.finish raises.
        """
        if self._sharding is not None and not self._loaded:
            self._sharding.finish(verify=verify)
            self._loaded = True

    def _wait(self, layer: nn.Module) -> None:
        self._require_loaded(str(layer.prefix), "run").wait(layer)

    def _require_loaded(self, prefix: str, done: str) -> LayerSharding:
        if self._sharding is None or not self._loaded:
            raise PlanError(
                f"{prefix} is {done} before post_process_after_loading; call that once the "
                "weights are loaded"
            )
        return self._sharding

    def _is_draft(self, index: int) -> bool:
        return self.num_hidden_layers is not None and index >= self.num_hidden_layers

    def _in_order(self) -> list[nn.Module]:
        return [layer for _, layer in sorted(self._layers.items())]


flashcomm2_oshard_manager = Flashcomm2OShardManager()
"""Of the process's one model, over the world: where the original had its only manager."""


def _block_of(prefix: Any) -> tuple[str, int]:
    """A prefix up to its layer index, and that index.

    Raises:
        PlanError: it is no text, or has no layer index, or several.
    """
    parts = prefix.split(".") if isinstance(prefix, str) else []
    places = [place for place, part in enumerate(parts) if part.isdecimal()]
    if len(places) != 1:
        has = f"{len(places)} layer indices" if places else "no layer index"
        raise PlanError(
            f"prefix {short(prefix)} has {has}; a layer's prefix is like model.layers.3.self_attn"
        )
    (place,) = places
    return ".".join(parts[: place + 1]), int(parts[place])


def _listed(prefixes: Iterable[str]) -> str:
    return ", ".join(prefixes) or "none"
