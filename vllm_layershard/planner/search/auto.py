"""The linears and the stride that the planner chooses, and what it says of its choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate import Hardware, PhaseName
from vllm_layershard.estimate.auto_layers import choose
from vllm_layershard.models import Deployment, Model, Sharding
from vllm_layershard.planner.options import Options, config_with


class Conditions(NamedTuple):
    """What the choice is made for: a device, the sizes of the phases, and those that must hide.

    `open_threshold`: each set of linears is judged with the threshold that would be found for it.
    """

    hardware: Hardware
    sizes: Mapping[str, int]
    phases: Sequence[PhaseName]
    open_threshold: bool


def chosen_sharding(
    model: Model, deployment: Deployment, options: Options, conditions: Conditions
) -> tuple[Sharding, str]:
    """The sharding that saves most and stays hidden, and a note that says so.

    Raises:
        ConfigError: an option's value is not valid.
        HardwareError: the hardware lacks a number that the choice needs.
        PlanError: nothing stays hidden.
    """
    hardware, phases = conditions.hardware, conditions.phases
    if options.get("placement") == "replicated":
        raise ConfigError(
            "--layers auto chooses what to move, and --placement replicated moves none"
        )
    if options.get("token_exchange"):
        raise ConfigError(
            "--layers auto chooses among linears as tensor parallelism splits them; name the "
            "linears beside --token-exchange"
        )
    template = config_with(("o_proj",), options)  # refuses an option before any search
    sharding = choose(
        model,
        deployment,
        hardware,
        template,
        phases,
        options.get("layer_stride"),
        open_threshold=conditions.open_threshold,
        **conditions.sizes,
    )
    chosen = sharding.config
    moved = ", where activations move" if chosen.move == "activations" else ""
    return sharding, (
        f"--layers auto chose {','.join(chosen.layers)} with layer_stride {chosen.layer_stride}: "
        f"it saves most of what stays hidden in {' and '.join(phases)} on {hardware.name}{moved}"
    )
