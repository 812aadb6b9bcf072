"""Mixtral.

Source: vLLM 0.32, model_executor/models/mixtral.py.
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
    window = config.optional_integer("sliding_window", high=1 << 30)
    return GqaBlueprint(
        **c.common,
        heads=c.attention(windows=(window,) * c.layers),
        intermediate=config.integer("intermediate_size"),
        moe=read_moe(
            config,
            (True,) * c.layers,
            experts="num_local_experts",
            intermediate="intermediate_size",
            name="block_sparse_moe.experts",
        ),
        router=Router(name="block_sparse_moe.gate"),
    )
