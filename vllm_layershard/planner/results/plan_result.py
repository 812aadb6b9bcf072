"""PlanResult: the answer to `layershard plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vllm_layershard.estimate import Estimate, Forecast, Hardware
from vllm_layershard.estimate.capacity import CacheLimit, capacity, may_fit
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.models import Evidence, Sharding
from vllm_layershard.planner.paying import PREFILL, Offer, failures_of, phases_of
from vllm_layershard.planner.results.document import document_of
from vllm_layershard.planner.serve_command import launch_commands

if TYPE_CHECKING:
    from vllm_layershard.estimate.pareto import Point
    from vllm_layershard.planner.layout import Layout
    from vllm_layershard.planner.results.checkpoint import StoredCheckpoint
    from vllm_layershard.planner.results.exchange import Exchange
    from vllm_layershard.planner.results.facts import (
        FfnFacts,
        GroupFacts,
        ModelFacts,
        ShardingFacts,
    )
    from vllm_layershard.planner.results.memory import KvCache, Memory, SeriesBytes
    from vllm_layershard.planner.results.move import Move
    from vllm_layershard.planner.results.prefetch import Prefetch

_SECTIONS: Final = (
    "model",
    "parallel",
    "sharding",
    "ffn",
    "series",
    "checkpoint",
    "memory",
    "kv_cache",
    "prefetch",
    "exchange",
    "move",
    "basis",
    "groups",
    "launch",
    "launches",
    "warnings",
)
"""The keys of the document, each an attribute of the result."""


class PlanResult(NamedTuple):
    """What sharding saves on each rank, and whether the movement hides.

    Each key of the document is an attribute of the same name, with the same value. `planned`,
    `forecast`, `limit` and `offer` (the plan with stripes, where they do better) may change with
    any version. Records are imported where they are asked for: the tables want none of them.
    """

    planned: Sharding
    forecast: Forecast
    evidence: Evidence
    kv_cache_dtype: str
    warnings: tuple[str, ...]
    limit: CacheLimit
    offer: Offer | None = None

    def __repr__(self) -> str:
        return f"<PlanResult {self.planned.said}; {self.forecast.verdict}>"

    @property
    def model(self) -> ModelFacts:
        """The model, and where its config.json came from."""
        from vllm_layershard.planner.results.facts import model_facts

        return model_facts(self.planned, self.evidence)

    @property
    def parallel(self) -> Layout:
        """The layout, given or assumed."""
        from vllm_layershard.planner.results.facts import layout_of

        return layout_of(self.planned)

    @property
    def sharding(self) -> ShardingFacts:
        """The configuration, given or chosen."""
        from vllm_layershard.planner.results.facts import sharding_facts

        return sharding_facts(self.planned)

    @property
    def ffn(self) -> FfnFacts | None:
        """The dense MLPs that are split; None where none is."""
        from vllm_layershard.planner.results.facts import ffn_facts

        return ffn_facts(self.planned)

    @property
    def series(self) -> tuple[SeriesBytes, ...]:
        """The bytes of every series."""
        from vllm_layershard.planner.results.memory import series_bytes

        groups = self.planned.groups
        return tuple(series_bytes(group, one) for group in groups for one in group.plan.series)

    @property
    def checkpoint(self) -> StoredCheckpoint | None:
        """What the model's files store; None where their headers were not read."""
        if self.evidence.comparison is None:
            return None
        from vllm_layershard.planner.results.checkpoint import checkpoint_of

        return checkpoint_of(self.planned, self.evidence)

    @property
    def memory(self) -> Memory:
        """The weights of every rank, and whether they fit."""
        from vllm_layershard.planner.results.memory import memory_of

        return memory_of(self.planned, self.forecast, self.limit)

    @property
    def kv_cache(self) -> KvCache:
        """The tokens that are gained."""
        from vllm_layershard.planner.results.memory import kv_cache_of

        return kv_cache_of(self.planned, self.kv_cache_dtype, self.limit)

    @property
    def prefetch(self) -> Prefetch:
        """The verdict and the times."""
        from vllm_layershard.planner.results.prefetch import prefetch_of

        return prefetch_of(self.forecast)

    @property
    def exchange(self) -> Exchange | None:
        """What the exchange of tokens costs and gains; None where none is planned."""
        if not self.planned.deployment.exchange:
            return None
        from vllm_layershard.planner.results.exchange import exchange_of

        return exchange_of(self.planned, self.forecast, self.kv_cache_dtype)

    @property
    def move(self) -> Move | None:
        """What moves in which forward; None where weights do in each, or nothing does."""
        if self.planned.config.move == "weights" or not self.planned.moves:
            return None
        from vllm_layershard.planner.results.move import move_of

        return move_of(self.planned, self.forecast, self.kv_cache_dtype)

    @property
    def basis(self) -> Mapping[str, str]:
        """What stands behind the numbers: exact, formula, measured or assumed."""
        return _basis_of(self.forecast)

    @property
    def groups(self) -> tuple[GroupFacts, ...]:
        """The ranks that share, and the digest of the plan that they obey."""
        from vllm_layershard.planner.results.facts import group_facts

        return tuple(map(group_facts, self.planned.groups))

    @property
    def launch(self) -> str | None:
        """The first command that serves the plan; None where `launches` is empty."""
        return next(iter(self.launches), None)

    @property
    def launches(self) -> tuple[str, ...]:
        """A command for each node. Empty without a fit, and for method fp8 on Ascend."""
        return _launches(self.planned, self.kv_cache_dtype, self.forecast)

    @property
    def room_tokens(self) -> int | None:
        """KV-cache tokens with room on every rank, as `compare_layouts` counts; None: not known."""
        if self.forecast.fit is None:
            return None
        return _room_tokens(self.planned, self.forecast.hardware, self.kv_cache_dtype)

    def alternatives(self) -> tuple[Point, ...]:
        """Other linears and strides: what each saves, and by how much it lengthens a forward.

        Empty where the device lacks a number.
        """
        return _alternatives(self.planned, self.forecast)

    def failures(self, hide_in: str | Sequence[str] = PREFILL) -> tuple[str, ...]:
        """Why the plan does not pay; empty where it does. The phases of `hide_in` have to hide.

        Raises:
            ConfigError: a phase is not known.
        """
        return failures_of(self.planned, self.forecast, phases_of(hide_in))

    def document(self) -> dict[str, Any]:
        """`layershard plan --json`: plain data of JSON's types."""
        return document_of(self, _SECTIONS)


def _launches(planned: Sharding, kv_cache_dtype: str, expected: Forecast) -> tuple[str, ...]:
    if not may_fit(expected.fit):
        return ()
    return launch_commands(planned, kv_cache_dtype, expected.batches, expected.hardware)


def _room_tokens(planned: Sharding, device: Hardware, kv_cache_dtype: str) -> int:
    saved, taken = planned.saved_bytes.__getitem__, taken_by(planned, device).total
    held = capacity(planned.model, planned.deployment, device, saved, kv_cache_dtype, taken)
    return held.engine_tokens


def _alternatives(planned: Sharding, expected: Forecast) -> tuple[Point, ...]:
    from vllm_layershard.estimate.pareto import pareto

    batches, device = tuple(expected.batches.values()), expected.hardware
    return pareto(planned.model, planned.deployment, device, planned.config, batches)


def _basis_of(expected: Forecast) -> dict[str, str]:
    return {
        "series": "exact",
        "memory.saved_bytes_min": "exact",
        "memory.weight_bytes_replicated": "formula",
        "memory.communicator_bytes": "formula",
        "memory.gathered_bytes": "formula",
        "kv_cache": "formula",
        "prefetch": "assumed",
        "prefetch.phases.fetch_us": (
            expected.movement_basis if isinstance(expected, Estimate) else "assumed"
        ),
    }
