"""What may exchange tokens: row-parallel linears whose results are whole where they end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from vllm_layershard.config import KEY
from vllm_layershard.errors import PlanError
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import layer_linears
from vllm_layershard.models.model import Model
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear

_HOW: Final[dict[str, str]] = {
    "out": "is column-parallel: its ranks share out what it puts out, and reduce nothing",
    "none": "is whole on every tensor-parallel rank already, and reduces nothing",
}


def without_exchange(deployment: Deployment) -> Deployment:
    """The same ranks, of plain tensor parallelism."""
    return replace(deployment, exchange=())


class Exchanged(NamedTuple):
    """A linear that is exchanged: as a rank of plain tensor parallelism holds it, and whole."""

    split_shape: Shape
    split: Linear
    whole_shape: Shape
    whole: Linear


def exchanged_linears(model: Model, deployment: Deployment, name: str) -> Iterator[Exchanged]:
    """Those of this name, in layer order; `deployment` exchanges them."""
    plain = _named(model, without_exchange(deployment), name)
    for split, whole in zip(plain, _named(model, deployment, name), strict=True):
        yield Exchanged(*split, *whole)


def require_exchange(model: Model, deployment: Deployment, names: tuple[str, ...]) -> None:
    """Refuse an exchange before linears that have none, as the plugin does.

    A name that matches nothing is the caller's to refuse. Source: vLLM 0.32, layers/linear.py,
    `RowParallelLinear`, and where the models build one with `reduce_results=False`.

    Raises:
        PlanError: names the linear, the reason and the remedy; or the layout cannot split the
            model.
    """
    plain = without_exchange(deployment)
    if plain.layout.tp == 1:
        raise PlanError(
            f"{KEY}.token_exchange: without tensor parallelism every rank has all heads, and there "
            "is nothing to exchange; leave it out, or use --tp 2 or more"
        )
    if plain.sequence_parallel_moe:
        raise PlanError(
            f"{KEY}.token_exchange: with expert, tensor and data parallelism together (--ep, tp "
            f"{plain.layout.tp}, dp {plain.layout.dp}) the layers run on shards of the tokens "
            "(sequence parallelism), and the exchange is not served there yet; leave out --ep or "
            "token_exchange"
        )
    for name in names:
        for shape, linear in _named(model, plain, name):
            why = _HOW.get(shape.split) or _unfit(model, shape, linear)
            if why:
                raise PlanError(
                    f"{KEY}.token_exchange: {name!r} is {linear.prefix}, which {why}; leave it out "
                    "there"
                )


def _unfit(model: Model, shape: Shape, linear: Linear) -> str:
    """Why a row-parallel linear exchanges nothing; "" where it may."""
    if shape.partial:
        return (
            f"leaves its sums to be added up by what follows it in {model.architecture} of vLLM "
            "0.32, which a gather would add up again"
        )
    if any(tensor.name == "quant_bias" for tensor in linear.tensors):
        return (
            "is W8A8 with static activations, whose bias vllm-ascend adds on the first "
            "tensor-parallel rank alone"
        )
    return ""


def _named(model: Model, deployment: Deployment, name: str) -> Iterator[tuple[Shape, Linear]]:
    model.require_split(deployment)
    for layer_id in range(model.num_layers):
        for segment in layer_linears(model.blueprint, layer_id, deployment):
            for shape, linear in segment:
                if linear.is_named(name):
                    yield shape, linear
