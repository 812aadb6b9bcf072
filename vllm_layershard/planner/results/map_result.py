"""MapResult: the answer to `layershard map` and `layershard check`."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vllm_layershard.models import Evidence, GroupPlan, Sharding
from vllm_layershard.plan import SeriesPlan, Stripe
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.results.document import document_of
from vllm_layershard.planner.results.facts import (
    FfnFacts,
    ModelFacts,
    ShardingFacts,
    ffn_facts,
    group_facts,
    layout_of,
    model_facts,
    sharding_facts,
)

_SECTIONS: Final = ("model", "parallel", "sharding", "ffn", "groups", "warnings")
"""The keys of the document, each an attribute of the result."""


class LayerOwners(NamedTuple):
    """Which group rank owns which layer of a series: `owner` has one for each of `layer_ids`.

    Every rank keeps `kept_layer`; None: none is kept. The owner is -1 where every rank stores the
    layer. Where layers are striped no rank owns one (owner -2), and `stripes` has the first byte,
    and the one after the last, that each group rank stores of every layer.
    """

    name: str
    layer_ids: tuple[int, ...]
    kept_layer: int | None
    owner: tuple[int, ...]
    stripes: tuple[Stripe, ...]
    owned_layers: tuple[tuple[int, ...], ...]


class GroupMap(NamedTuple):
    """The groups that obey one plan: the global ranks of each, and the owners of their layers."""

    pp_stage: int
    tp_replicated: bool
    ranks: tuple[tuple[int, ...], ...]
    digest: str
    series: tuple[LayerOwners, ...]


class MapResult(NamedTuple):
    """For each group which rank stores which layer.

    Each key of the document is an attribute of the same name, with the same value. `planned` is
    what the planner itself works with; it may change with any version.
    """

    planned: Sharding
    evidence: Evidence
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<MapResult {self.planned.said}>"

    @property
    def model(self) -> ModelFacts:
        """The model, and where its config.json came from."""
        return model_facts(self.planned, self.evidence)

    @property
    def parallel(self) -> Layout:
        """The layout, given or assumed."""
        return layout_of(self.planned)

    @property
    def sharding(self) -> ShardingFacts:
        """The configuration."""
        return sharding_facts(self.planned)

    @property
    def ffn(self) -> FfnFacts | None:
        """The dense MLPs that are split; None where none is."""
        return ffn_facts(self.planned)

    @property
    def groups(self) -> tuple[GroupMap, ...]:
        """The ranks that share, and what each of them stores."""
        return tuple(map(_group_map, self.planned.groups))

    def document(self) -> dict[str, Any]:
        """`layershard map --json`: plain data of JSON's types."""
        return document_of(self, _SECTIONS)


def _group_map(group: GroupPlan) -> GroupMap:
    ranks = range(group.plan.group_size)
    return GroupMap(
        *group_facts(group),
        series=tuple(_owners(series_plan, ranks) for series_plan in group.plan.series),
    )


def _owners(series_plan: SeriesPlan, ranks: range) -> LayerOwners:
    series = series_plan.series
    return LayerOwners(
        name=series.name,
        layer_ids=series.layer_ids,
        kept_layer=series.kept_layer,
        owner=series_plan.owner,
        stripes=series_plan.stripes,
        owned_layers=tuple(tuple(series_plan.owned_layers(rank)) for rank in ranks),
    )
