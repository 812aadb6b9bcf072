"""What these families are in vLLM: their MLPs have one activation, and they are decoders."""

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


def require_decoder(config: ConfigFile) -> None:
    """Refuse a model that vLLM builds as an encoder: where `is_causal` counts as false.

    Source: vLLM 0.32, models/llama.py, qwen2.py, qwen3.py and qwen3_next.py; config/model.py,
    `use_mla`, where MLA gives way to another attention.

    Raises:
        ModelError: names the file and what is stated.
    """
    causal = config.values.get("is_causal", True)
    if not causal:
        config.fail(
            "is_causal",
            f"is {shown(causal)}: an encoder keeps no cache, and is not planned; take it out if "
            "the model generates text",
        )
