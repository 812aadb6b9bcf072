"""Paying: what `--check` asks of a plan."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from vllm_layershard.estimate import Forecast, PhaseName
from vllm_layershard.models import Sharding


def require_paying(sharding: Sharding, forecast: Forecast, phases: Sequence[PhaseName]) -> None:
    """Exit with 1, and say why.

    It fails where the weights do not fit, a rank saves nothing, or one of the phases does not hide.
    """
    failures = []
    if not forecast.starts:
        failures.append("it does not fit")
    if min(sharding.saved_bytes) <= 0:
        failures.append(f"a rank saves {min(sharding.saved_bytes):,} bytes")
    for phase in forecast.phases:
        if phase.name in phases and not phase.hidden:
            known = phase.forward is not None
            failures.append(f"{phase.name} {'does not hide' if known else 'is not estimated'}")
    if failures:
        typer.echo(f"check failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)
