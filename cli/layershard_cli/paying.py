"""Paying: what `--check` asks of a plan."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from vllm_layershard.estimate import Abstention, Estimate, Forecast, PhaseName
from vllm_layershard.estimate.capacity import may_fit
from vllm_layershard.models import Sharding


def require_paying(sharding: Sharding, forecast: Forecast, phases: Sequence[PhaseName]) -> None:
    """Exit with 1, and say why.

    It fails where the weights do not fit, a rank saves nothing, or one of the phases does not hide.
    """
    failures = []
    if not may_fit(forecast.fit):
        failures.append("it does not fit")
    if min(sharding.saved_bytes) <= 0:
        failures.append(f"a rank saves {min(sharding.saved_bytes):,} bytes")
    match forecast:
        case Estimate():
            shown = [phase.name for phase in forecast.phases if not phase.hidden]
            failures += [f"{name} does not hide" for name in shown if name in phases]
        case Abstention():
            failures += [f"{name} is not estimated" for name in forecast.batches if name in phases]
    if failures:
        typer.echo(f"check failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)
