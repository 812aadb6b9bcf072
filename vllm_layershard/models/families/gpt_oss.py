"""gpt-oss.

Source: vLLM 0.32, model_executor/models/gpt_oss.py.
"""

from __future__ import annotations

from vllm_layershard.models.families.gqa import GqaBlueprint, Router
from vllm_layershard.models.families.gqa_config import read_gqa, read_moe
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    c = read_gqa(config)
    window = config.integer("sliding_window", high=1 << 30)
    note = (
        f"every other layer looks back at {window:,} tokens and keeps no more of a sequence: long "
        "ones take as little as half of the bytes of a token"
    )
    return GqaBlueprint(
        **(c.common | {"notes": (*c.notes, note)}),
        heads=c.attention(
            name="attn",
            qkv_bias=True,
            out_bias=True,
            sinks=True,
            # vLLM alternates by the layer's parity, whatever layer_types says.
            windows=tuple(window if i % 2 == 0 else None for i in range(c.layers)),
        ),
        intermediate=config.integer("intermediate_size"),
        moe=read_moe(
            config,
            (True,) * c.layers,
            experts="num_local_experts",
            intermediate="intermediate_size",
            bias=True,
        ),
        router=Router(name="mlp.router", bias=True),
    )
