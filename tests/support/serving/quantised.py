"""The test model quantised: the checkpoints of five methods of vLLM's and of the tests' own one.

Only `LINEARS` are: attention linears with no other name in them, in all nine layers. Of the dense
model, which takes fp8 in blocks, all linears are: `DENSE_LINEARS`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from serving.weights import FILE

LINEARS = ("q_b_proj", "o_proj")
DENSE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP = 32
"""Columns that share a scale: 16-bit scales are then an eighth of the weight's bytes, and large."""

PLUGINS = Path(__file__).parents[1] / "plugins"
"""The path that makes `reference_int4` known to vLLM, and lets any CPU serve fp8 in blocks."""

Tensors = dict[str, torch.Tensor]


def int4(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Values 0 to 15 [out, in]; scale and zero point of each block, [out / rows, in / columns]."""
    blocks = weight.float().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    low = blocks.amin(dim=(1, 3), keepdim=True).clamp(max=0)
    high = blocks.amax(dim=(1, 3), keepdim=True).clamp(min=1e-6)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    values = ((blocks / scale).round() + zero).clamp(0, 15)
    flat = values.flatten(2, 3).flatten(0, 1).int()
    return flat, scale[:, 0, :, 0], zero[:, 0, :, 0].int()


def packed(
    values: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))
) -> torch.Tensor:
    """Eight neighbours along `dim` in an int32; the i-th four bits hold the `order[i]`-th."""
    eights = values.unflatten(dim, (-1, 8)).movedim(dim + 1, 0).to(torch.int64)
    word = sum(eights[k] << (4 * i) for i, k in enumerate(order))
    return torch.as_tensor(word).to(torch.int32).contiguous()


def awq(weight: torch.Tensor) -> Tensors:
    """AutoAWQ: transposed, packed along the output, in its own order."""
    values, scale, zero = int4(weight, 1, GROUP)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": packed(values.t(), 1, order),
        "qzeros": packed(zero.t(), 1, order),
        "scales": scale.t().contiguous().to(weight.dtype),
    }


def pack_quantized(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' int4 with zero points."""
    values, scale, zero = int4(weight, 1, GROUP)
    return {
        "weight_packed": packed(values, 1),
        "weight_scale": scale.to(weight.dtype),
        "weight_zero_point": packed(zero, 0),
        "weight_shape": torch.tensor(weight.shape),
    }


def fp8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' fp8, a scale for each row."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 448
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def int8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' int8, a scale for each row."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
    return {"weight": (weight.float() / scale).round().to(torch.int8), "weight_scale": scale}


def fp8_blocks(weight: torch.Tensor) -> Tensors:
    """DeepSeek's fp8, a scale for each block of `GROUP` rows and columns: no power of two."""
    blocks = weight.float().unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    values = (blocks / scale).flatten(2, 3).flatten(0, 1)
    return {
        "weight": values.to(torch.float8_e4m3fn).contiguous(),
        "weight_scale_inv": scale[:, 0, :, 0].contiguous(),
    }


def reference_int4(rows: int, columns: int) -> Callable[[torch.Tensor], Tensors]:
    """The tests' own method: see plugins/reference_int4.py."""

    def quantise(weight: torch.Tensor) -> Tensors:
        values, scale, zero = int4(weight, rows, columns)
        pairs = values.to(torch.uint8).unflatten(1, (-1, 2))
        return {
            "weight_packed": (pairs[..., 0] | pairs[..., 1] << 4).contiguous(),
            "weight_scale": scale.contiguous(),
            "weight_zero_point": zero.to(torch.uint8).contiguous(),
        }

    return quantise


def _compressed(format_: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": group},
        "ignore": ["re:.*mlp.*", "re:.*kv_b_proj", "re:.*a_proj.*", "lm_head"],
    }


def _of_rows(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {"num_bits": 8, "type": kind, "symmetric": True}
    return common | {"strategy": "channel"}, common | {"strategy": "token", "dynamic": True}


def _reference(rows: int, columns: int) -> dict[str, Any]:
    return {"quant_method": "reference_int4", "block": [rows, columns], "linears": list(LINEARS)}


@dataclass(frozen=True, slots=True)
class Method:
    """How a checkpoint is quantised: what its config.json says, and each weight's tensors."""

    config: dict[str, Any]
    quantise: Callable[[torch.Tensor], Tensors]
    linears: tuple[str, ...] = LINEARS


METHODS = {
    "awq": Method(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["mlp", "kv_b_proj", "a_proj", "lm_head"],
        },
        awq,
    ),
    "pack-quantized": Method(
        _compressed(
            "pack-quantized",
            {
                "num_bits": 4,
                "type": "int",
                "symmetric": False,
                "strategy": "group",
                "group_size": GROUP,
            },
            None,
        ),
        pack_quantized,
    ),
    "fp8": Method(_compressed("float-quantized", *_of_rows("float")), fp8),
    "fp8-blocks": Method(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [GROUP, GROUP],
        },
        fp8_blocks,
        DENSE_LINEARS,
    ),
    "int8": Method(_compressed("int-quantized", *_of_rows("int")), int8),
    "reference-groups": Method(_reference(1, 16), reference_int4(1, 16)),
    "reference-blocks": Method(_reference(32, 32), reference_int4(32, 32)),
}


def quantised(model: Path, directory: Path, name: str, left: tuple[str, ...] = ()) -> Path:
    """A copy of `model` in `directory`, its linears quantised by the method of that name.

    But for those that are `left` as they were, by their names; the method has a list for them.
    """
    method = METHODS[name]
    shutil.copytree(model, directory)
    tensors: Tensors = {}
    for key, tensor in load_file(model / FILE).items():
        linear = key.removesuffix(".weight")
        if linear.endswith(method.linears) and linear not in left:
            tensors |= {f"{linear}.{k}": t for k, t in method.quantise(tensor).items()}
        else:
            tensors[key] = tensor
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    section = method.config
    if left:
        section = section | {"ignore": [*section["ignore"], *left]}
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return directory


KERNELS = {"awq": "cpu_gemm_wna16", "pack-quantized": "cpu_gemm_wna16"}
"""The op that vLLM's method calls; vLLM's build for processors without AVX-512 does not have it."""


def kernel_lacking(method: str) -> str | None:
    """Why vLLM cannot compute with this method on this processor at all; None if it can."""
    import_module("vllm._custom_ops")  # loads the build for this processor
    op = KERNELS.get(method)
    if op is None or hasattr(torch.ops._C, op):
        return None
    return f"vLLM has no {op} for this processor (AVX-512), so that no {method} model runs on it"
