"""Auto: `--layers auto`, and what it says of its choice."""

from __future__ import annotations

from typing import Any

from layershard_cli.phases import PREFILL
from layershard_cli.resolve import Conditions
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate.auto_layers import choose
from vllm_layershard.models import Deployment, Model, Sharding


def auto_sharding(
    model: Model, deployment: Deployment, options: dict[str, Any], conditions: Conditions
) -> tuple[Sharding, str]:
    """The sharding that saves most and stays hidden, and a note that says so.

    Raises:
        ConfigError: a flag's value is not valid.
        HardwareError: the hardware lacks a number that the choice needs.
        PlanError: nothing stays hidden.
    """
    phases = conditions.hide_in or PREFILL
    stride = options.get("layer_stride")
    given = {
        key: value for key, value in options.items() if value is not None and key != "layer_stride"
    }

    def config(names: tuple[str, ...], layer_stride: int) -> LayerShardConfig:
        return LayerShardConfig(layers=names, layer_stride=layer_stride, **given)

    if given.get("placement") == "replicated":
        raise ConfigError(
            "--layers auto chooses what to move, and --placement replicated moves none"
        )
    config(("o_proj",), stride if stride is not None else 1)  # refuses a flag before any search
    sharding = choose(
        model, deployment, conditions.hardware, config, phases, stride, **conditions.load.sizes
    )
    chosen = sharding.config
    return sharding, (
        f"--layers auto chose {','.join(chosen.layers)} with layer_stride {chosen.layer_stride}: "
        f"it saves most of what stays hidden in {' and '.join(phases)} on "
        f"{conditions.hardware.name}"
    )
