"""What `layershard plan` writes beside its answer. Progress and failures go to stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence

from layershard_cli.output import tell
from vllm_layershard.bounded_file import UnwritableError, write_named
from vllm_layershard.errors import ConfigError
from vllm_layershard.planner.results.plan_result import PlanResult
from vllm_layershard.planner.results.timelines import Timeline


def write_html(path: str, result: PlanResult) -> None:
    """`--html FILE`.

    Raises:
        ConfigError: the file cannot be written.
    """
    from layershard_cli.render.html import page

    _write("--html", path, page(result, result.alternatives()))


def write_trace(path: str, timelines: Sequence[Timeline]) -> None:
    """`--trace FILE`.

    Raises:
        ConfigError: the file cannot be written.
    """
    from layershard_cli.render.trace import trace_document

    _write("--trace", path, json.dumps(trace_document(timelines)))


def _write(flag: str, path: str, text: str) -> None:
    if not path:
        raise ConfigError(f"{flag} is empty; give the name of a file")
    try:
        write_named(path, text.encode(errors="backslashreplace"))
    except UnwritableError as error:
        raise ConfigError(f"{flag} {path!r}: {error}") from None
    tell(f"wrote {path}")
