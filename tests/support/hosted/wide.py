"""A DeepSeek-V3 of random weights whose attention linears are wide: 2 MiB a layer and name.

Wide against a page of memory and against all else that the model holds, so that what a rank
allocates and reads for them stands out.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import DeepseekV3ForCausalLM

from recital.experts import VLLM_ONLY, shape

LAYERS = range(9)
LAYER_BYTES = 2 << 20


def wide_model(directory: Path, changes: Mapping[str, int] | None = None) -> Path:
    """Write config.json and model.safetensors to `directory`; 60 MB without `changes`."""
    config = copy.copy(shape())
    changed = {
        "hidden_size": 512,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 512,
        "qk_nope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 4,
        **(changes or {}),
    }
    for key, value in changed.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | VLLM_ONLY))
    return directory
