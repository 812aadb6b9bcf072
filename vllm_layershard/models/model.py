"""Model: what the planner knows of one model, whatever its family.

Draft (MTP) layers are a part of it only where they are asked for: vLLM loads them to draft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from vllm_layershard.errors import ConfigError, ModelError, PlanError
from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.cache.kv_cache import (
    AttentionCache,
    CacheDevice,
    HeadsCache,
    StoredCache,
    device_cache_dtype,
    means_auto,
)
from vllm_layershard.models.cache.pages import LayerCache, LayerCaches, Page, block_tokens
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import layer_experts, layer_linears
from vllm_layershard.models.shape import SplitSize, require_split
from vllm_layershard.models.weight_bytes import WeightBytes, held_bytes, padded_vocab
from vllm_layershard.plan import Linear, ParallelLayout, stage_layers

_WHOLE: Final = Deployment(ParallelLayout())

_ROUTED_STAGES: Final = (
    *("Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "Qwen3MoeForCausalLM"),
    *("Qwen3NextForCausalLM", "Qwen3VLMoeForConditionalGeneration"),
)
"""Those of which vLLM builds no pipeline stage without a layer that has routed experts.
Source: vLLM 0.32, model_executor/models/glm4_moe.py, `extract_moe_parameters`; qwen3_moe.py,
qwen3_next.py and qwen3_vl_moe.py, `set_moe_parameters`."""


class Model(NamedTuple):
    """One model, from its config.json, on any deployment.

    `stored_cache`: that which its checkpoint asks for, where nobody names one.
    `cache_device`: that whose form of the cache is counted; without a word, Hopper's. `drafted`:
    tokens that each sequence drafts in a step with the model's own draft layers; 0: not loaded.
    `int8_layers`: those whose keys and values a checkpoint has as eight-bit integers. `mlapo`:
    on Ascend it is not switched off.
    """

    name: str
    source: str
    architecture: str
    blueprint: Blueprint
    stored_cache: StoredCache | None = None
    cache_device: CacheDevice = CacheDevice()
    drafted: int = 0
    int8_layers: frozenset[int] = frozenset()
    mlapo: bool = True

    @property
    def num_layers(self) -> int:
        """Hidden layers, without draft layers."""
        return len(self.blueprint.layers)

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""
        return self.blueprint.dtype

    @property
    def quantization(self) -> str:
        """`none` or the method."""
        return self.blueprint.quantization.name

    def cache_dtype(self, kv_cache_dtype: str) -> str:
        """What `auto` comes to; every other dtype as it is."""
        if kv_cache_dtype != "auto" and not means_auto(self.architecture, kv_cache_dtype):
            return kv_cache_dtype
        if kv_cache_dtype == "auto" and self.stored_cache is not None:
            return self.stored_cache.dtype
        one = self.blueprint.layers[0][0].attention.cache(self.dtype, tp=1)
        return device_cache_dtype(self.architecture, one, self.cache_device) or self.dtype

    @property
    def is_moe(self) -> bool:
        """vLLM keeps data-parallel ranks in lockstep only if so."""
        return self.blueprint.experts is not None

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 if there are none."""
        return self.blueprint.experts.experts if self.blueprint.experts is not None else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed while reading the config."""
        return self.blueprint.notes

    @property
    def parameters(self) -> int:
        """Weights that a checkpoint stores, without draft layers and quantisation scales."""
        b = self.blueprint
        total = b.vocab * b.hidden * (1 if b.tied else 2) + b.hidden
        for layer_id, layer in enumerate(b.layers):
            total += sum(
                s.parameters for segment in layer for s in segment.shapes(b.hidden, _WHOLE)
            )
            total += sum(vector.elements for vector in b.vectors(layer_id, tp=1))
            if b.experts is not None and b.is_routed(layer_id):
                total += b.experts.parameters(b.hidden)
        return total

    def linears(self, deployment: Deployment) -> tuple[Linear, ...]:
        """Every linear of every hidden layer, as one rank holds it.

        Raises:
            PlanError: this layout cannot split the model.
        """
        self.require_split(deployment)
        return tuple(
            linear
            for layer_id in range(self.num_layers)
            for segment in layer_linears(self.blueprint, layer_id, deployment)
            for _, linear in segment
        )

    def weight_bytes(self, deployment: Deployment, rank: int) -> WeightBytes:
        """Bytes of one global rank.

        Raises:
            PlanError: this layout cannot split the model.
        """
        self.require_split(deployment)
        return held_bytes(
            self.blueprint,
            deployment,
            rank,
            drafting=self.drafted > 0,
            on_ascend=self.cache_device.is_ascend,
            mlapo=self.mlapo,
        )

    def kv_bytes_per_token(
        self, kv_cache_dtype: str, layers: Sequence[int], deployment: Deployment
    ) -> int:
        """Cache bytes of one token in these layers on one rank.

        Raises:
            ConfigError: a cache dtype that is not known for this model.
            ModelError: its checkpoint asks for one.
            HardwareError: no backend of vLLM takes its attention on this device.
        """
        return sum(_token_bytes(self, kv_cache_dtype, _caches(self, layers, deployment)))

    def cache_tokens(
        self, room: int, kv_cache_dtype: str, layers: range, deployment: Deployment
    ) -> int | None:
        """Tokens that a server counts in `room` bytes of one rank; None: these layers limit none.

        Raises:
            ConfigError: a cache dtype that is not known for this model.
            ModelError: its checkpoint asks for one.
            HardwareError: no backend of vLLM takes its attention on this device.
            PlanError: vllm-ascend serves no states of these bytes.
        """
        held = layer_caches(self, kv_cache_dtype, layers, deployment)
        return held.tokens(room, self.blueprint.longest)

    def state_bytes_per_sequence(self, layers: Sequence[int], deployment: Deployment) -> int:
        """Bytes that these layers keep of each sequence on one rank, however long it is."""
        return sum(cache.state_bytes for cache in _caches(self, layers, deployment))

    def require_split(self, deployment: Deployment) -> None:
        """Refuse a layout that cannot split the model.

        Raises:
            PlanError: says what does not divide.
            ModelError: vLLM builds no such model in any layout.
        """
        b, tp = self.blueprint, deployment.layout.tp
        _require_one_module(self, deployment.layout)
        _require_routed_stages(self, deployment.layout.pp)
        require_split(tp, b.split)
        require_split(tp, [SplitSize("the padded vocabulary", padded_vocab(b.vocab))])
        if b.experts is not None:
            b.experts.require_split(deployment)
            for layer_id in [i for i in range(self.num_layers) if b.is_routed(i)][:1]:
                layer_experts(b, layer_id, deployment, rank=0)  # refuses split blocks


@lru_cache(maxsize=1 << 6)  # asked for each room on each rank
def layer_caches(
    model: Model, kv_cache_dtype: str, layers: range, deployment: Deployment
) -> LayerCaches:
    """All caches of the model, of which those of `layers` are on the rank's stage.

    A server groups the layers of all stages together.

    Raises:
        ConfigError: a cache dtype that is not known for this model.
        ModelError: its checkpoint asks for one.
        HardwareError: no backend of vLLM takes its attention on this device.
        PlanError: vllm-ascend serves no states of these bytes.
    """
    every = range(model.num_layers)
    caches = _caches(model, every, deployment)
    found = [layer_id for layer_id, _ in model.blueprint.attentions(every, model.drafted)]
    last = every[-1]  # draft layers are beside it
    of_token = _token_bytes(model, kv_cache_dtype, caches)
    return LayerCaches(
        tuple(
            LayerCache(
                per_token,
                cache.state_bytes,
                cache.window if isinstance(cache, HeadsCache) else None,
                here=min(layer_id, last) in layers,
            )
            for layer_id, cache, per_token in zip(found, caches, of_token, strict=True)
        ),
        model.drafted,
        model.cache_device.in_flight(deployment.layout.pp),
        block_tokens(caches, model.cache_dtype(kv_cache_dtype), model.cache_device),
        _page_on_ascend(model, model.cache_dtype(kv_cache_dtype), caches),
    )


def _page_on_ascend(
    model: Model, kv_cache_dtype: str, caches: Sequence[AttentionCache]
) -> Page | None:
    """None on other devices, and where no layer keeps a state."""
    if not model.cache_device.is_ascend or not any(cache.state_bytes for cache in caches):
        return None
    from vllm_layershard.models.cache.ascend_page import ascend_page  # seldom asked for

    return ascend_page(caches, kv_cache_dtype, model.dtype, model.cache_device)


def cache_name(model: Model, kv_cache_dtype: str) -> str:
    """`int8` where all keys and values of hidden layers are; else what `auto` comes to."""
    eight = bool(model.int8_layers) and all(
        cache.int8
        for cache in _caches(model, range(model.num_layers), _WHOLE)
        if isinstance(cache, HeadsCache)
    )
    return "int8" if eight else model.cache_dtype(kv_cache_dtype)


def _require_one_module(model: Model, layout: ParallelLayout) -> None:
    """Source: vLLM 0.32, v1/worker/gpu/pcp_manager.py, `validate_config`."""
    drafts = model.blueprint.drafts
    modules = min(model.drafted, len(drafts.layers) if drafts is not None else 0)
    if layout.pcp > 1 and modules > 1 and not model.cache_device.is_ascend:
        raise PlanError(
            f"--mtp {model.drafted}: would use {modules} draft layers, and under prefill-context "
            "parallelism vLLM 0.32 drafts with one alone; give --mtp 1, or leave --pcp out"
        )


def _require_routed_stages(model: Model, pp: int) -> None:
    if model.architecture not in _ROUTED_STAGES:
        return
    routed = [model.blueprint.is_routed(layer_id) for layer_id in range(model.num_layers)]
    if not any(routed):
        raise ModelError(
            f"{model.name}: none of its {model.num_layers} layers has routed experts, and vLLM "
            f"0.32 builds no {model.architecture} without; correct the fields of config.json that "
            "say which layers are dense"
        )
    for stage, layers in enumerate(stage_layers(model.num_layers, pp)):
        if not any(routed[layer_id] for layer_id in layers):
            raise PlanError(
                f"pp = {pp}: stage {stage} would have layers {layers.start} to {layers.stop - 1} "
                f"of {model.name}, none of them with routed experts, and vLLM 0.32 builds no such "
                f"stage of a {model.architecture}; choose a smaller pp"
            )


def _caches(
    model: Model, layers: Sequence[int], deployment: Deployment
) -> tuple[AttentionCache, ...]:
    """What each attention of these layers keeps, and each of draft layers beside the last."""
    found: list[AttentionCache] = []
    for layer_id, attention in model.blueprint.attentions(layers, model.drafted):
        cache = attention.cache(model.dtype, deployment.layout.tp)
        if layer_id in model.int8_layers and isinstance(cache, HeadsCache):
            cache = cache._replace(int8=True)
        found.append(cache)
    return tuple(found)


def _token_bytes(model: Model, asked: str, caches: Sequence[AttentionCache]) -> tuple[int, ...]:
    dtype, device = model.cache_dtype(asked), model.cache_device
    stored = model.stored_cache
    if stored is not None:
        stored.require_readable(device)
    try:
        return tuple(cache.bytes_per_token(dtype, model.dtype, device) for cache in caches)
    except ConfigError:
        if asked != "auto" or stored is None:
            raise
        raise stored.not_served() from None
