"""A LoRA adapter for the test model's attention, in the format that peft saves."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK = 8
ALPHA = 16
TARGETS = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")


def adapter_for(model: Path, directory: Path) -> Path:
    """Write the adapter into `directory`: random, and large enough to change every answer."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with safe_open(model / "model.safetensors", "pt") as checkpoint:
        for name in sorted(checkpoint.keys()):
            linear = name.removesuffix(".weight")
            if linear.endswith(TARGETS):
                rows, columns = checkpoint.get_slice(name).get_shape()
                for half, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                    tensor = torch.randn(shape, generator=generator) / 8
                    tensors[f"base_model.model.{linear}.lora_{half}.weight"] = tensor.bfloat16()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
