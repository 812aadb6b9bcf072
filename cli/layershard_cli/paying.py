"""Paying: what `--check` asks of a plan."""

from __future__ import annotations

import typer

from layershard_cli.phases import phases_of
from vllm_layershard.estimate import Forecast
from vllm_layershard.models import Sharding


def require_paying(sharding: Sharding, forecast: Forecast, hide_in: str | None) -> None:
    """Exit with 1, and say why, if some rank saves nothing or a named phase does not hide.

    Raises:
        ConfigError: `hide_in` names no phase.
    """
    wanted = phases_of(hide_in)
    failures = []
    if min(sharding.saved_bytes) <= 0:
        failures.append(f"a rank saves {min(sharding.saved_bytes):,} bytes")
    for phase in forecast.phases:
        if phase.name in wanted and not phase.hidden:
            known = phase.forward is not None
            failures.append(f"{phase.name} {'does not hide' if known else 'is not estimated'}")
    if failures:
        typer.echo(f"check failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)
