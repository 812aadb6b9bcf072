"""Auto: `--layers auto`, and what it says of its choice."""

from __future__ import annotations

from typing import NamedTuple

from layershard_cli.resolve import Load, Options
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import Hardware, PhaseName
from vllm_layershard.estimate.auto_layers import choose
from vllm_layershard.models import Deployment, Model, Sharding
from vllm_layershard.planner.phases import PREFILL


class Conditions(NamedTuple):
    """What `--layers auto` decides for; `hide_in` are the phases as given, None where not."""

    hardware: Hardware
    load: Load
    hide_in: tuple[PhaseName, ...] | None


def auto_sharding(
    model: Model, deployment: Deployment, options: Options, conditions: Conditions
) -> tuple[Sharding, str]:
    """The sharding that saves most and stays hidden, and a note that says so.

    Raises:
        ConfigError: a flag's value is not valid.
        HardwareError: the hardware lacks a number that the choice needs.
        PlanError: nothing stays hidden.
    """
    phases = conditions.hide_in or PREFILL
    if options.placement == "replicated":
        raise ConfigError(
            "--layers auto chooses what to move, and --placement replicated moves none"
        )
    template = options.config(("o_proj",))  # refuses a flag before any search
    sharding = choose(
        model,
        deployment,
        conditions.hardware,
        template,
        phases,
        options.layer_stride,
        **conditions.load.sizes,
    )
    chosen = sharding.config
    return sharding, (
        f"--layers auto chose {','.join(chosen.layers)} with layer_stride {chosen.layer_stride}: "
        f"it saves most of what stays hidden in {' and '.join(phases)} on "
        f"{conditions.hardware.name}"
    )
