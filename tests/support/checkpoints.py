"""Checkpoints for tests: real files with real headers, their data a hole in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Name -> dtype in the format's words, and shape."""

BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8, "F16": 2}

ENDS = ("model.embed_tokens", "lm_head")
"""What a model has around its layers, which a description of ModelSlim's names, too."""


def header_of(tensors: Tensors) -> tuple[bytes, int]:
    """The header, and the bytes of data that it speaks of."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return json.dumps(entries, separators=(",", ":")).encode(), end


def write_raw(path: Path, header: bytes, data_bytes: int, length: int | None = None) -> None:
    """A file of this header, with as many bytes of data; `length` is what it says of the header."""
    said = len(header) if length is None else length
    with path.open("wb") as file:
        file.write(said.to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data_bytes)


def write(directory: Path, tensors: Tensors, shards: int = 1) -> None:
    """One `model.safetensors`, or several shards with their index."""
    directory.mkdir(exist_ok=True)
    if shards == 1:
        write_raw(directory / "model.safetensors", *header_of(tensors))
        return
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_raw(directory / file, *header_of(part))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def small_config(**changes: object) -> dict[str, object]:
    """A DeepSeek-V3 of nine small layers, the first four of them dense."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 9,
        "first_k_dense_replace": 4,
        "num_attention_heads": 4,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "topk_method": "noaux_tc",
        "vocab_size": 512,
        "torch_dtype": "bfloat16",
        **changes,
    }


def deepseek(config: Mapping[str, object]) -> dict[str, tuple[str, Sequence[int]]]:
    """The tensors of a DeepSeek-V3 checkpoint, draft layer included, as they are published.

    Written from the published checkpoints' names, not from the planner's.
    """
    c = {key: value for key, value in config.items() if isinstance(value, int)}
    quantised = "quantization_config" in config
    tensors: dict[str, tuple[str, Sequence[int]]] = {}

    def linear(name: str, rows: int, columns: int, plain: bool = False) -> None:
        if quantised and not plain:
            tensors[f"{name}.weight"] = ("F8_E4M3", [rows, columns])
            scales = [-(-rows // 128), -(-columns // 128)]
            tensors[f"{name}.weight_scale_inv"] = ("F32", scales)
        else:
            tensors[f"{name}.weight"] = ("BF16", [rows, columns])

    def mlp(name: str, width: int) -> None:
        linear(f"{name}.gate_proj", width, c["hidden_size"])
        linear(f"{name}.up_proj", width, c["hidden_size"])
        linear(f"{name}.down_proj", c["hidden_size"], width)

    def layer(index: int) -> None:
        name, hidden, heads = f"model.layers.{index}", c["hidden_size"], c["num_attention_heads"]
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        linear(f"{name}.self_attn.q_a_proj", c["q_lora_rank"], hidden)
        linear(f"{name}.self_attn.q_b_proj", heads * (nope + rope), c["q_lora_rank"])
        linear(f"{name}.self_attn.kv_a_proj_with_mqa", c["kv_lora_rank"] + rope, hidden)
        linear(f"{name}.self_attn.kv_b_proj", heads * (nope + v), c["kv_lora_rank"])
        linear(f"{name}.self_attn.o_proj", hidden, heads * v)
        tensors[f"{name}.self_attn.q_a_layernorm.weight"] = ("BF16", [c["q_lora_rank"]])
        tensors[f"{name}.self_attn.kv_a_layernorm.weight"] = ("BF16", [c["kv_lora_rank"]])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = ("BF16", [hidden])
        if index < c["first_k_dense_replace"]:
            mlp(f"{name}.mlp", c["intermediate_size"])
            return
        linear(f"{name}.mlp.gate", c["n_routed_experts"], hidden, plain=True)
        tensors[f"{name}.mlp.gate.e_score_correction_bias"] = ("F32", [c["n_routed_experts"]])
        mlp(f"{name}.mlp.shared_experts", c["moe_intermediate_size"])
        for expert in range(c["n_routed_experts"]):
            mlp(f"{name}.mlp.experts.{expert}", c["moe_intermediate_size"])

    vocabulary = [c["vocab_size"], c["hidden_size"]]
    tensors["model.embed_tokens.weight"] = ("BF16", vocabulary)
    for index in range(c["num_hidden_layers"]):
        layer(index)
    draft = c["num_hidden_layers"]
    layer(draft)
    tensors[f"model.layers.{draft}.eh_proj.weight"] = (
        "BF16",
        [c["hidden_size"], 2 * c["hidden_size"]],
    )
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"model.layers.{draft}.{norm}.weight"] = ("BF16", [c["hidden_size"]])
    for name in (f"model.layers.{draft}.embed_tokens", f"model.layers.{draft}.shared_head.head"):
        tensors[f"{name}.weight"] = ("BF16", vocabulary)
    tensors["model.norm.weight"] = ("BF16", [c["hidden_size"]])
    tensors["lm_head.weight"] = ("BF16", vocabulary)
    return tensors
