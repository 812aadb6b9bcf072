"""Report: what each rank really holds and did, as JSON."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vllm_layershard.errors import ConfigError
from vllm_layershard.runtime.report_file import ReportFile
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.split_mlp import SplitFfn
from vllm_layershard.version import __version__

_REFRESH_SECONDS = 1.0

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own: with its format


class Report:
    """Writes `layershard-rank{rank}.json`; `digests` maps a series' name to its plan's digest.

    `first_rank` is the global number of the world's rank 0. `ffn` are the dense MLPs that are split
    beside; without them the report does not speak of any.
    """

    def __init__(
        self,
        directory: str,
        rank: int,
        series: Sequence[ShardedSeries],
        digests: Mapping[str, str],
        ffn: SplitFfn | None = None,
        *,
        first_rank: int = 0,
    ) -> None:
        self._file = ReportFile(directory, rank)
        self._first_rank = first_rank
        self._series = series
        self._digests = digests
        self._ffn = ffn
        self._timer: threading.Timer | None = None
        self._failed = False

    def document(self) -> dict[str, Any]:
        """The report as plain data; bytes are measured from the storages now held."""
        return {
            "schema_version": 1,
            "version": __version__,
            "rank": self._file.rank,
            "process": {"hostname": os.uname().nodename, "pid": os.getpid()},
            "series": [
                {
                    "name": s.name,
                    "group_ranks": [self._first_rank + rank for rank in s.group.ranks],
                    "group_rank": s.group.group_rank,
                    "plan_digest": self._digests[s.name],
                    "placement": s.placement,
                    "movement": s.transport_name,
                    "layer_ids": list(s.plan.series.layer_ids),
                    "kept_layer": s.plan.series.kept_layer,
                    "owned_layers": list(s.plan.owned_layers(s.group.group_rank)),
                    "replicated_bytes": s.plan.ledger.replicated_bytes,
                    "resident_bytes": s.resident_bytes(),
                    "slot_bytes": s.slots.nbytes(),
                    **asdict(s.counters),
                }
                for s in self._series
            ],
            **({} if self._ffn is None else {"ffn": self._ffn.document()}),
        }

    def write(self) -> None:
        """Write the file anew, whole or not at all.

        Raises:
            ConfigError: another server writes it, or the directory cannot be made or written.
        """
        self._file.write(json.dumps(self.document()) + "\n")

    def refresh(self) -> None:
        """Have the file written within a second, off the calling thread: cheap in every forward."""
        if self._timer is None:
            self._timer = threading.Timer(_REFRESH_SECONDS, self._write_or_log)
            self._timer.daemon = True
            self._timer.start()

    def _write_or_log(self) -> None:
        """A server does not end because its report cannot be written; it says so once."""
        self._timer = None  # a forward that ends from here on has the file written once more
        try:
            self.write()
            self._failed = False
        except ConfigError as error:
            if not self._failed:
                logger.warning("rank %d: %s", self._file.rank, error)
            self._failed = True
