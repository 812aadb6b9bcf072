"""Dense: Llama 3.1 and Qwen3.

Source: vLLM 0.32, model_executor/models/llama.py and qwen3.py.
"""

from __future__ import annotations

from vllm_layershard.models.families.gqa import GqaBlueprint
from vllm_layershard.models.families.gqa_config import read_gqa, windows_of
from vllm_layershard.models.families.mlp import require_silu
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    require_silu(config)
    c = read_gqa(config)
    bias = config.boolean("attention_bias")
    llama = architecture == "LlamaForCausalLM"
    if llama and (config.get("bias") is not None or config.get("qkv_bias") is not None):
        config.fail("bias", "biases of this kind are not known to the planner")
    windows: tuple[int | None, ...] = (None,) * c.layers
    if llama or config.boolean("use_sliding_window"):
        windows = windows_of(config, c.layers)
    return GqaBlueprint(
        **c.common,
        heads=c.attention(
            qkv_bias=bias,
            out_bias=bias and llama,
            qk_norm="none" if llama else "head",
            windows=windows,
        ),
        intermediate=config.integer("intermediate_size"),
        mlp_bias=llama and config.boolean("mlp_bias"),
    )
