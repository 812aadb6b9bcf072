"""Series: the linears of one name and one layout within a pipeline stage, which share slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from vllm_layershard.plan.linear import Linear
from vllm_layershard.plan.rows import Rows, rows_of

IN_DOCUMENT: Final = "in_document"
"""Metadata of a field: False for one that a plan's document leaves out."""


@dataclass(frozen=True, slots=True)
class Series:
    """Layers whose weights are alike, in forward order.

    `layer_ids` are absolute indices, ascending; a layer's position is its index in them.
    `layer_bytes` move, `small_bytes` stay on every rank; both are per layer. `layout` says shape,
    stride and dtype of what moves: ranks whose layouts differ cannot share slots. `kept_layer` is
    the layer like them, ahead of all, that every rank keeps (`keep_first`); it has no position.
    `rows` are those of a weight that is cut at rows, if striped. A plan's document has the stripes
    that come of them, and not the rows.
    """

    name: str
    layer_ids: tuple[int, ...]
    layer_bytes: int
    small_bytes: int = 0
    tp_replicated: bool = False
    layout: str = ""
    kept_layer: int | None = None
    rows: Rows | None = field(default=None, metadata={IN_DOCUMENT: False})

    def __post_init__(self) -> None:
        assert self.layer_ids, f"series {self.name!r} has no layers"
        ascending = all(a < b for a, b in pairwise(self.layer_ids))
        assert ascending, f"series {self.name!r}: layers out of order"
        first = self.boundary(0)
        assert first >= 0, f"series {self.name!r}: negative layer index"
        assert first <= self.layer_ids[0], f"series {self.name!r}: a later layer is kept"
        assert self.layer_bytes > 0, f"series {self.name!r} moves no bytes"
        cut = self.rows is None or self.rows.number * self.rows.nbytes == self.layer_bytes
        assert cut, f"series {self.name!r}: {self.layer_bytes} bytes are not {self.rows}"

    def __len__(self) -> int:
        return len(self.layer_ids)

    @property
    def configured(self) -> str:
        """The configured name of its linears: without what tells it from others of that name."""
        return self.name.removesuffix(f"@{self.boundary(0)}")

    @property
    def has_others(self) -> bool:
        """Whether other layers of its name have another layout."""
        return self.configured != self.name

    def is_short_for(self, prefetch_step: int) -> bool:
        """Whether it stays whole, since the step's slots would hold all its layers.

        Only a series beside others of its name, and no step of 0 (docs/adr/0003).
        """
        return self.has_others and prefetch_step > 0 and len(self) <= prefetch_step + 1

    def boundary(self, position: int) -> int:
        """The layer at whose boundary a position stands: its own, or for the first the kept one."""
        if position == 0 and self.kept_layer is not None:
            return self.kept_layer
        return self.layer_ids[position]


def in_stride(layer_id: int, layer_stride: int) -> bool:
    """Whether a layer takes part under this `layer_stride`; the others stay on every rank."""
    return layer_id % layer_stride == 0


def series_of(
    selected: Mapping[str, Sequence[Linear]],
    layer_stride: int = 1,
    *,
    keep_first: bool = False,
    by_rows: bool = False,
) -> dict[Series, tuple[Linear, ...]]:
    """Group each name's linears into series, in the order of the names, then of the layers.

    With `layer_stride` s only the layers with index % s == 0 take part, the others stay replicated;
    so does with `keep_first` the first one of each series that has a second. A name whose linears
    differ in layout gives several series, told apart by their layout. `by_rows` are cut at rows.

    Raises:
        PlanError: a linear that is to be cut at rows cannot be.
    """
    grouped: dict[Series, tuple[Linear, ...]] = {}
    for name, linears in selected.items():
        alike: dict[tuple[bool, int, str], list[Linear]] = {}
        for linear in linears:
            if in_stride(linear.layer_id, layer_stride):
                layout = " ".join(f"{t.name}:{t.layout}" for t in linear.large)
                alike.setdefault((linear.tp_replicated, linear.tp_copies, layout), []).append(
                    linear
                )
        for (tp_replicated, _, layout), members in alike.items():
            members.sort(key=lambda linear: linear.layer_id)
            first = members[0].layer_id
            kept = members.pop(0) if keep_first and len(members) > 1 else None
            series = Series(
                name=name if len(alike) == 1 else f"{name}@{first}",
                layer_ids=tuple(linear.layer_id for linear in members),
                layer_bytes=members[0].large_bytes,
                small_bytes=members[0].small_bytes,
                tp_replicated=tp_replicated,
                layout=layout,
                kept_layer=None if kept is None else kept.layer_id,
                rows=rows_of(members[0]) if by_rows else None,
            )
            grouped[series] = tuple(members)
    return grouped


def as_processed(series: Series, members: Sequence[Linear]) -> Series:
    """The same series, of what its linears hold once they are processed.

    Raises:
        PlanError: it is cut at rows, and they are none any more.
    """
    processed, *others = series_of({series.name: members}, by_rows=series.rows is not None)
    assert not others, f"series {series.name!r}: layouts differ within the series"
    return replace(processed, name=series.name, kept_layer=series.kept_layer)


def by_group(
    grouped: Mapping[Series, tuple[Linear, ...]],
) -> Iterator[tuple[bool, int, dict[Series, tuple[Linear, ...]]]]:
    """The series of each kind of group, with its `tp_replicated` and `tp_copies`.

    Those split by tensor parallelism come first, whole ones last.
    """
    kinds: dict[tuple[bool, int], dict[Series, tuple[Linear, ...]]] = {}
    for series, members in grouped.items():
        kind = (members[0].tp_replicated, members[0].tp_copies)
        kinds.setdefault(kind, {})[series] = members
    for tp_replicated, tp_copies in sorted(kinds):
        yield tp_replicated, tp_copies, kinds[tp_replicated, tp_copies]
