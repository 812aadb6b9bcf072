"""Other weights for the test model: a checkpoint of the same shapes that answers otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALE = 0.7
FILE = "model.safetensors"


def with_other_weights(model: Path, directory: Path, suffixes: tuple[str, ...]) -> Path:
    """A copy of `model` in `directory` whose weights of these names are other ones, everywhere."""
    shutil.copytree(model, directory)
    tensors = load_file(model / FILE)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(tensors.items()):
        if name.removesuffix(".weight").endswith(suffixes):
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (SCALE * tensor.float() + (1 - SCALE) * noise).to(tensor.dtype)
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    return directory


def weights_of(model: Path, suffixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors of the linears of these names."""
    tensors = load_file(model / FILE)
    return {n: t for n, t in tensors.items() if n.removesuffix(".weight").endswith(suffixes)}
