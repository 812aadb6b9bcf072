"""The only activation that vLLM runs in the MLPs of these families."""

from __future__ import annotations

from vllm_layershard.models.sources.config_file import ConfigFile, shown


def require_silu(config: ConfigFile) -> None:
    """Refuse an activation that vLLM does not run: the MLPs of these families know SiLU only.

    Raises:
        ModelError: names the file and the activation.
    """
    activation = config.string("hidden_act")
    if activation != "silu":
        problem = f"{shown(activation)}: vLLM runs this architecture with 'silu' only"
        config.fail("hidden_act", problem)
