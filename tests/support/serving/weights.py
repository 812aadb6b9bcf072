"""Other weights for the test model: a checkpoint of the same shapes that answers otherwise."""

from __future__ import annotations

import json
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


def with_draft_layer(model: Path, directory: Path) -> Path:
    """A copy of `model` in `directory` with a layer for multi-token prediction: its last, again."""
    shutil.copytree(model, directory)
    config = json.loads((model / "config.json").read_text())
    last, draft = config["num_hidden_layers"] - 1, config["num_hidden_layers"]
    tensors = load_file(model / FILE)
    prefix = f"model.layers.{draft}."
    for name, tensor in list(tensors.items()):
        if name.startswith(f"model.layers.{last}."):
            tensors[name.replace(f"layers.{last}.", f"layers.{draft}.")] = tensor.clone()
    hidden = config["hidden_size"]
    norm = tensors["model.norm.weight"]
    halves = torch.eye(hidden, dtype=norm.dtype) / 2
    tensors |= {
        f"{prefix}enorm.weight": norm.clone(),
        f"{prefix}hnorm.weight": norm.clone(),
        f"{prefix}eh_proj.weight": torch.cat([halves, halves], dim=1),
        f"{prefix}shared_head.norm.weight": norm.clone(),
        f"{prefix}shared_head.head.weight": tensors["lm_head.weight"].clone(),
        f"{prefix}embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return directory


def first_layers(model: Path, directory: Path, num_layers: int) -> Path:
    """A copy of `model` in `directory` that ends after its first layers, all of them dense."""
    shutil.copytree(model, directory)
    config = json.loads((model / "config.json").read_text())
    assert num_layers <= config["first_k_dense_replace"]
    gone = tuple(f"model.layers.{i}." for i in range(num_layers, config["num_hidden_layers"]))
    tensors = {n: t for n, t in load_file(model / FILE).items() if not n.startswith(gone)}
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    return directory


def with_experts(dense: Path, directory: Path, mlps: int = 3, experts: int = 8) -> Path:
    """A copy of a Qwen3 in `directory` whose layers have experts, but for the first `mlps`.

    Each expert is its layer's MLP and their shares add up to one, so that it says what `dense`
    says. Routers are made up: tokens go to different experts.
    """
    shutil.copytree(dense, directory)
    config = json.loads((dense / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in load_file(dense / FILE).items():
        before, mlp, after = name.partition(".mlp.")
        if not mlp or int(before.rpartition(".")[2]) < mlps:
            tensors[name] = tensor
            continue
        for expert in range(experts):
            tensors[f"{before}.mlp.experts.{expert}.{after}"] = tensor.clone()
        router = torch.randn(experts, config["hidden_size"], generator=generator)
        tensors[f"{before}.mlp.gate.weight"] = router.to(tensor.dtype)
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    of_experts = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(mlps)),
        "moe_intermediate_size": config["intermediate_size"],
        "norm_topk_prob": True,
        "num_experts": experts,
        "num_experts_per_tok": 2,
    }
    (directory / "config.json").write_text(json.dumps(config | of_experts))
    return directory


def weights_of(model: Path, suffixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors of the linears of these names."""
    tensors = load_file(model / FILE)
    return {n: t for n, t in tensors.items() if n.removesuffix(".weight").endswith(suffixes)}
