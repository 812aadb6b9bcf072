"""Blueprint: what the planner reads of one model in its config.json, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.parts.attention import Attention
from vllm_layershard.models.parts.experts import Experts
from vllm_layershard.models.parts.feed_forward import FeedForward, Router
from vllm_layershard.models.quantization import UNREAD, Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.shape import Shape, SplitSize, Vector
from vllm_layershard.plan import ParallelLayout

_WHOLE = Deployment(ParallelLayout())

MAX_LAYERS = 1024
"""More hidden layers than any model has."""

MAX_EXPERTS = 1 << 16
"""More routed experts in a layer than any model has."""


class Segment(NamedTuple):
    """An attention and what follows it, with a norm of the model's width before each of the two.

    `mlps` are in forward order. Where one is a router the model's routed experts follow it.
    """

    attention: Attention
    mlps: tuple[FeedForward, ...]

    def shapes(self, hidden: int, deployment: Deployment) -> Iterator[Shape]:
        """Its linears in forward order, as one rank holds them."""
        yield from self.attention.shapes(hidden, deployment.layout.tp)
        for mlp in self.mlps:
            yield from mlp.shapes(hidden, deployment)

    def vectors(self, hidden: int, dtype: str, tp: int) -> Iterator[Vector]:
        """All its other parameters, without the routed experts'."""
        yield Vector("norms", 2 * hidden, dtype)
        yield from self.attention.vectors(dtype, tp)
        for mlp in self.mlps:
            yield from mlp.vectors()

    @property
    def is_routed(self) -> bool:
        """Whether it has routed experts."""
        return any(isinstance(mlp, Router) for mlp in self.mlps)


Layer = tuple[Segment, ...]
"""A decoder layer: one segment, or several that follow one another."""


class Drafts(NamedTuple):
    """Draft (MTP) layers, which vLLM loads beside the model where it drafts tokens with them.

    `stem` is the name of their list; None: they go on in the model's. `fused`: one linear, `fc`,
    makes the input of them all, and ranks split it; else each layer has a whole one, unquantised.
    """

    layers: tuple[Layer, ...]
    stem: str | None = None
    fused: bool = False


@dataclass(frozen=True, slots=True, eq=False)  # by identity: what is derived from one is kept
class Blueprint:
    """One model, as a family's reader makes it of the config.json; draft (MTP) layers are apart.

    `hidden` is the width of the residual stream, `vocab` the tokens before padding. `tied`: the
    output head is the embedding. `dtype` is that of what is not quantised. `split` are the sizes
    that tensor parallelism divides. `notes`: what had to be assumed. `stem` is the name of the
    list of decoder layers. `quantization`: a family leaves it to the registry. `longest`: tokens of
    the longest sequence; where layers keep states or windows, a server counts its cache in those.
    `head_quantisable`: vLLM's class tells its head of the quantisation; else it stays as it is.
    `head_name`: where the head is not called as its place in the model says.
    """

    layers: tuple[Layer, ...]
    hidden: int
    vocab: int
    dtype: str
    split: tuple[SplitSize, ...]
    experts: Experts | None = None
    tied: bool = False
    notes: tuple[str, ...] = ()
    stem: str = "model.layers"
    quantization: Quantization = UNREAD
    longest: int | None = None
    drafts: Drafts | None = None
    head_quantisable: bool = True
    head_name: str | None = None

    def __post_init__(self) -> None:
        assert self.experts is not None or not any(map(self.is_routed, range(len(self.layers))))

    def is_routed(self, layer_id: int) -> bool:
        """Whether a layer has routed experts."""
        return any(segment.is_routed for segment in self.layers[layer_id])

    @property
    def head(self) -> str:
        """vLLM's name of the output head."""
        return self.head_name or f"{self.stem.removesuffix('model.layers')}lm_head"

    def experts_prefix(self, layer_id: int) -> str:
        """vLLM's name of the routed experts of a layer."""
        assert self.experts is not None, "only where there are some"
        return f"{self.stem}.{layer_id}.{self.experts.name}"

    @property
    def is_quantised(self) -> bool:
        """Whether any layer's routed experts, any linear or the head has a format of its own."""
        quantises = self.quantization.quantises
        routed = filter(self.is_routed, range(len(self.layers)))
        return (
            any(quantises(self.experts_prefix(layer_id)) for layer_id in routed)
            or any(quantises(prefix, shape) for prefix, shape in self.shapes())
            or (self.head_quantisable and self.quantization.quantises_head(self.head))
        )

    def formats(self) -> Iterator[tuple[str, Format]]:
        """What is quantised of the linears, of the layers' routed experts and of the head, by name.

        Raises:
            ModelError: the config quantises only some of a linear's or an expert's parts.
        """
        routed = filter(self.is_routed, range(len(self.layers)))
        experts = ((self.experts_prefix(layer_id), None) for layer_id in routed)
        for prefix, shape in (*self.shapes(), *experts):
            found = self.quantization.format(prefix, shape)
            if found is not None:
                yield prefix, found
        found = self.quantization.head_format(self.head) if self.head_quantisable else None
        if found is not None:
            yield self.head, found

    def modules(self) -> Iterator[str]:
        """vLLM's names of all linears, of each layer's routed experts, and of the head."""
        yield from (prefix for prefix, _ in self.shapes())
        yield from map(self.experts_prefix, filter(self.is_routed, range(len(self.layers))))
        yield self.head

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every linear by vLLM's name of it, whole."""
        for layer_id, layer in enumerate(self.layers):
            for segment in layer:
                for shape in segment.shapes(self.hidden, _WHOLE):
                    yield f"{self.stem}.{layer_id}.{shape.suffix}", shape

    def vectors(self, layer_id: int, tp: int) -> Iterator[Vector]:
        """All parameters of one layer that are no linear's and no routed expert's."""
        for segment in self.layers[layer_id]:
            yield from segment.vectors(self.hidden, self.dtype, tp)

    def attentions(self, layers: Sequence[int], drafted: int) -> Iterator[tuple[int, Attention]]:
        """Index and attention of some layers, as they keep caches where so many tokens are drafted.

        Draft layers stand beside the last one.
        """
        found = [(layer_id, self.layers[layer_id]) for layer_id in layers]
        if drafted and self.drafts is not None and len(self.layers) - 1 in layers:
            found += enumerate(self.drafts.layers, len(self.layers))
        for layer_id, layer in found:
            for segment in layer:
                yield layer_id, segment.attention.drafting(drafted)


def with_mlps(blueprint: Blueprint, change: Callable[[FeedForward, str], FeedForward]) -> Blueprint:
    """With each MLP and router changed, those of draft layers of another name too.

    `change` is given one, and vLLM's name of the layer that it is in.
    """

    def changed(layers: tuple[Layer, ...], stem: str) -> tuple[Layer, ...]:
        return tuple(
            tuple(s._replace(mlps=tuple(change(m, f"{stem}.{i}") for m in s.mlps)) for s in layer)
            for i, layer in enumerate(layers)
        )

    drafts = blueprint.drafts
    if drafts is not None and drafts.stem is not None:
        drafts = drafts._replace(layers=changed(drafts.layers, drafts.stem))
    return replace(blueprint, layers=changed(blueprint.layers, blueprint.stem), drafts=drafts)
