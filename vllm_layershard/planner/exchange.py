"""The layouts of `layershard compare` whose ranks exchange tokens."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.models import Deployment, Model, linears_by_suffix
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.linear import short_names
from vllm_layershard.planner.options import Options, names_of


def with_exchange(
    model: Model, options: Options, layers: str | Sequence[str] | None
) -> tuple[Options, str | Sequence[str] | None]:
    """The options and the layers of a layout that exchanges what its attentions put out.

    Where it is not sharded the layers are those alone. Of layers that are named it exchanges those
    that are an attention's output; with none among them, what is refused says so.
    """
    outputs = _outputs(model)
    names = [*outputs.values()]
    if options.get("placement") == "replicated":
        return Options(placement="replicated", token_exchange=names), names
    if layers is not None:
        of_outputs = [
            name
            for name in names_of(layers)
            if any(f".{output}".endswith(f".{name}") for output in outputs)
        ]
        names = of_outputs or names
    return options | Options(token_exchange=names), layers


def _outputs(model: Model) -> dict[str, str]:
    """The row-parallel linears of the attentions within their layers, each with a short name."""
    linears = linears_by_suffix(model, Deployment(ParallelLayout()))
    short = dict(zip(linears, short_names(x[0] for x in linears.values()), strict=True))
    blueprint = model.blueprint
    kinds = dict.fromkeys(segment.attention for layer in blueprint.layers for segment in layer)
    shapes = (shape for kind in kinds for shape in kind.shapes(blueprint.hidden, 1))
    return {shape.suffix: short[shape.suffix] for shape in shapes if shape.split == "in"}
