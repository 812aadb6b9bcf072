"""Plan: all that is decided for one group of ranks. The CLI prints it, the runtime obeys it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from vllm_layershard.config import Placement
from vllm_layershard.errors import PlanError
from vllm_layershard.plan.ledger import Ledger, ledger_of
from vllm_layershard.plan.placement import EVERY_RANK, loaders, owners, stripes
from vllm_layershard.plan.rows import Stripe
from vllm_layershard.plan.schedule import Schedule, schedule_of, stay_put
from vllm_layershard.plan.series import IN_DOCUMENT, Series
from vllm_layershard.version import __version__


class SeriesPlan(NamedTuple):
    """The decisions for one series. Tuples are indexed by position, `stripes` by group rank.

    `owner[p]` is a group rank, EVERY_RANK or NO_RANK; `loader[p]` the rank that reads the layer
    from the checkpoint for all. `stripes` is what each rank stores of every layer, if striped.
    """

    series: Series
    owner: tuple[int, ...]
    loader: tuple[int, ...]
    stripes: tuple[Stripe, ...]
    schedule: Schedule
    ledger: Ledger

    def is_resident(self, position: int, group_rank: int) -> bool:
        """Whether this rank stores the position's weight itself instead of reading a slot."""
        return self.owner[position] in (group_rank, EVERY_RANK)

    def arriving_bytes(self, position: int, group_rank: int) -> int:
        """Bytes that come to this rank where the position's weight moves."""
        if not self.moves or self.is_resident(position, group_rank):
            return 0
        start, end = self.stripes[group_rank] if self.is_striped else (0, 0)
        return self.series.layer_bytes - (end - start)

    @property
    def moves(self) -> bool:
        """Whether its layers move at all: those of the `replicated` placement do not."""
        return self.schedule.num_slots > 0

    @property
    def is_striped(self) -> bool:
        """Whether every rank stores a part of every layer, and no rank a whole one."""
        return bool(self.stripes)

    def layer_name(self, position: int) -> str:
        """The layer at a position, as messages call it."""
        return f"layer {self.series.layer_ids[position]} of series {self.series.name!r}"

    @property
    def owner_of_layer(self) -> dict[int, int]:
        """The owner of each layer by its absolute index; EVERY_RANK for one that is not moved."""
        kept = self.series.kept_layer
        ahead = {} if kept is None else {kept: EVERY_RANK}
        return ahead | dict(zip(self.series.layer_ids, self.owner, strict=True))

    def stripes_of(self, layer_bytes: int) -> tuple[Stripe, ...]:
        """The stripes of a layer of that many bytes: of what processing has made of a weight.

        They are `stripes` of the plan that is made once the bytes are known (Plan.with_series).
        """
        return _stripes(self.series, layer_bytes, len(self.stripes))

    def rows(self, group_rank: int) -> tuple[int, int]:
        """The first of the rows that this rank stores, and the one after its last.

        The series is cut at rows: see the note [Stripes of rows] in plan/rows.py.
        """
        assert self.series.rows is not None, f"series {self.series.name!r} is not cut at rows"
        return self.series.rows.of(self.stripes[group_rank])

    def owned_layers(self, group_rank: int) -> tuple[int, ...]:
        """The absolute indices of the layers that this rank stores."""
        return tuple(
            layer_id
            for position, layer_id in enumerate(self.series.layer_ids)
            if self.is_resident(position, group_rank)
        )


class Plan(NamedTuple):
    """The decisions for the series that one group of `group_size` ranks shares."""

    group_size: int
    prefetch_step: int
    layer_stride: int
    placement: Placement
    series: tuple[SeriesPlan, ...]

    @property
    def saved_bytes(self) -> tuple[int, ...]:
        """Bytes saved on each group rank, over all series."""
        return tuple(
            sum(s.ledger.saved_bytes[rank] for s in self.series) for rank in range(self.group_size)
        )

    def with_series(self, series: Sequence[Series]) -> Plan:
        """The plan of other series under the same decisions: of the same, once bytes are known.

        Raises:
            PlanError: the prefetch_step is too large for one of them.
        """
        return build_plan(
            series, self.group_size, self.prefetch_step, self.placement, self.layer_stride
        )

    def with_prefetch_step(self, prefetch_step: int) -> Plan:
        """The plan of the same series under another prefetch_step.

        Raises:
            PlanError: it is too large for a series.
        """
        if prefetch_step == self.prefetch_step:
            return self
        other = self._replace(prefetch_step=prefetch_step)
        return other.with_series([series_plan.series for series_plan in self.series])

    def document(self) -> dict[str, Any]:
        """The whole plan as plain data, with the version that made it."""
        return {"version": __version__, **_plain(self)}

    def digest(self) -> str:
        """SHA-256 of the document: equal digests mean equal starts on every rank."""
        canonical = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        import hashlib  # loads OpenSSL, which the planner does not need

        return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A record as an object by the names of its fields, a tuple as a list."""
    if is_dataclass(value):
        named = [field.name for field in fields(value) if field.metadata.get(IN_DOCUMENT, True)]
        return {name: _plain(getattr(value, name)) for name in named}
    if hasattr(value, "_fields"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def build_plan(
    series: Sequence[Series],
    group_size: int,
    prefetch_step: int,
    placement: Placement = "round_robin",
    layer_stride: int = 1,
) -> Plan:
    """Decide owners, slots, starts and bytes for the series of one group.

    A series beside others of its name stays whole on every rank where it is short for the step.

    Raises:
        PlanError: a group of one rank, or a prefetch_step too large for a series.
    """
    names = [s.name for s in series]
    assert len(set(names)) == len(names), f"series names must differ: {names}"
    assert prefetch_step >= 0, "config checks it"
    assert layer_stride >= 1, "config checks it"
    assert group_size >= 1, "a layout checks it"
    placements = [_placement_of(s, prefetch_step, placement) for s in series]
    moved = [name for name, its in zip(names, placements, strict=True) if its != "replicated"]
    if group_size == 1 and moved:
        raise PlanError(
            f"series {', '.join(map(repr, moved))}: a group of one rank has nobody to share with; "
            "layer sharding needs at least two ranks that hold the same copy (data or context "
            "parallel ranks, or tensor-parallel ranks for a linear that is not split, or before "
            "which they exchange tokens: token_exchange)"
        )
    return Plan(
        group_size=group_size,
        prefetch_step=prefetch_step,
        layer_stride=layer_stride,
        placement=placement,
        series=tuple(
            _plan_series(s, group_size, prefetch_step, its, layer_stride)
            for s, its in zip(series, placements, strict=True)
        ),
    )


def _placement_of(series: Series, prefetch_step: int, placement: Placement) -> Placement:
    """Where the layers of one series are stored (docs/adr/0003)."""
    return "replicated" if series.is_short_for(prefetch_step) else placement


def _plan_series(
    series: Series, group_size: int, prefetch_step: int, placement: Placement, layer_stride: int
) -> SeriesPlan:
    owner = owners(series, group_size, placement, layer_stride)
    moves = placement != "replicated"
    schedule = schedule_of(series, prefetch_step, layer_stride) if moves else stay_put(series)
    parts = _stripes(series, series.layer_bytes, group_size) if placement == "striped" else ()
    return SeriesPlan(
        series=series,
        owner=owner,
        loader=loaders(series, group_size, layer_stride),
        stripes=parts,
        schedule=schedule,
        ledger=ledger_of(series, owner, parts, group_size, schedule.num_slots),
    )


def _stripes(series: Series, layer_bytes: int, group_size: int) -> tuple[Stripe, ...]:
    """Of a layer of that many bytes, which is another than as loaded if processing changes it."""
    if series.rows is None:
        return stripes(layer_bytes, group_size)
    assert layer_bytes == series.layer_bytes, f"series {series.name!r}: its rows have changed"
    return stripes(layer_bytes, group_size, series.rows.unit_bytes)


def differences(mine: Any, theirs: Any, path: str = "plan") -> list[str]:
    """Where two plan documents differ, as `path: mine != theirs`; [] if they are equal."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = [*mine, *(key for key in theirs if key not in mine)]
        return [
            line
            for key in keys
            for line in differences(mine.get(key), theirs.get(key), f"{path}.{key}")
        ]
    same_length = isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs)
    if same_length:
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    return [] if mine == theirs else [f"{path}: {mine!r} != {theirs!r}"]
