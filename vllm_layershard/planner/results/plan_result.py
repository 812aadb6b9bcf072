"""PlanResult: the answer to `layershard plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from vllm_layershard.estimate import Estimate, Forecast
from vllm_layershard.estimate.capacity import may_fit
from vllm_layershard.models import Evidence, Sharding
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.paying import PREFILL, failures_of, phases_of
from vllm_layershard.planner.results.checkpoint import StoredCheckpoint, checkpoint_of
from vllm_layershard.planner.results.document import SCHEMA_VERSION, plain
from vllm_layershard.planner.results.facts import (
    GroupFacts,
    ModelFacts,
    ShardingFacts,
    group_facts,
    layout_of,
    model_facts,
    sharding_facts,
)
from vllm_layershard.planner.results.memory import (
    KvCache,
    Memory,
    SeriesBytes,
    kv_cache_of,
    memory_of,
    series_bytes,
)
from vllm_layershard.planner.results.prefetch import Prefetch, prefetch_of
from vllm_layershard.planner.serve_command import launch_command
from vllm_layershard.version import __version__

_SECTIONS: Final = (
    "model",
    "parallel",
    "sharding",
    "series",
    "checkpoint",
    "memory",
    "kv_cache",
    "prefetch",
    "basis",
    "groups",
    "launch",
    "warnings",
)
"""The keys of the document, each an attribute of the result."""


class PlanResult(NamedTuple):
    """What sharding saves on each rank, and whether the movement hides.

    Each key of the document is an attribute of the same name, with the same value. `planned` and
    `forecast` are what the planner itself works with; they may change with any version.
    """

    planned: Sharding
    forecast: Forecast
    evidence: Evidence
    kv_cache_dtype: str
    warnings: tuple[str, ...]

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
        """The configuration, given or chosen."""
        return sharding_facts(self.planned)

    @property
    def series(self) -> tuple[SeriesBytes, ...]:
        """The bytes of every series."""
        groups = self.planned.groups
        return tuple(series_bytes(group, one) for group in groups for one in group.plan.series)

    @property
    def checkpoint(self) -> StoredCheckpoint | None:
        """What the model's files store; None where their headers were not read."""
        return checkpoint_of(self.planned, self.evidence)

    @property
    def memory(self) -> Memory:
        """The weights of every rank, and whether they fit."""
        return memory_of(self.planned, self.forecast.fit)

    @property
    def kv_cache(self) -> KvCache:
        """The tokens that are gained."""
        return kv_cache_of(self.planned, self.kv_cache_dtype)

    @property
    def prefetch(self) -> Prefetch:
        """The verdict and the times."""
        return prefetch_of(self.forecast)

    @property
    def basis(self) -> Mapping[str, str]:
        """What stands behind the numbers: exact, formula, measured or assumed."""
        expected = self.forecast
        return {
            "series": "exact",
            "memory.saved_bytes_min": "exact",
            "memory.weight_bytes_replicated": "formula",
            "kv_cache": "formula",
            "prefetch": "assumed",
            "prefetch.phases.fetch_us": (
                expected.movement_basis if isinstance(expected, Estimate) else "assumed"
            ),
        }

    @property
    def groups(self) -> tuple[GroupFacts, ...]:
        """The ranks that share, and the digest of the plan that they obey."""
        return tuple(map(group_facts, self.planned.groups))

    @property
    def launch(self) -> str | None:
        """The command that serves the plan; None where the weights do not fit."""
        if not may_fit(self.forecast.fit):
            return None
        return launch_command(self.planned, self.kv_cache_dtype)

    def failures(self, hide_in: str | Sequence[str] = PREFILL) -> tuple[str, ...]:
        """Why the plan does not pay; empty where it does. The phases of `hide_in` have to hide.

        Raises:
            ConfigError: a phase is not known.
        """
        return failures_of(self.planned, self.forecast, phases_of(hide_in))

    def document(self) -> dict[str, Any]:
        """`layershard plan --json`: plain data of JSON's types."""
        sections = {name: plain(getattr(self, name)) for name in _SECTIONS}
        return {"schema_version": SCHEMA_VERSION, "version": __version__, **sections}
