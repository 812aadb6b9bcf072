"""A model's bytes by hand: a sum over the matrices that its checkpoint stores, by their names.

Nothing of the planner is used: what a rank of `ranks` holds with expert parallelism and without
tensor parallelism follows from config.json by the formulas of the models' papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PLAIN = 2.0
"""Bytes of an element of bfloat16 or float16."""


class Matrix(NamedTuple):
    """A matrix of a checkpoint. `copies`: as many alike on a rank. `fixed`: never quantised.

    `element`: bytes of an element where it is not quantised.
    """

    name: str
    rows: int
    inner: int
    copies: int = 1
    fixed: bool = False
    element: float = PLAIN


Stored = Callable[[Matrix], float | None]
"""The bytes of one copy of a matrix in a checkpoint's format; None: it is not quantised."""


def nvfp4(matrix: Matrix) -> float:
    """Half a byte, a byte for sixteen, a scale of the weight and one of the activation."""
    return matrix.rows * matrix.inner * (1 / 2 + 1 / 16) + 8


def nvfp4_weights(matrix: Matrix) -> float:
    """The same without the activation's scale, which experts keep all the same."""
    return nvfp4(matrix) - (0 if ".experts." in matrix.name else 4)


def fp8_tensor(matrix: Matrix) -> float:
    """A byte, a scale of the weight and one of the activation."""
    return matrix.rows * matrix.inner + 8


def fp8_rows(matrix: Matrix) -> float:
    """A byte, and a float32 a row."""
    return matrix.rows * matrix.inner + 4 * matrix.rows


def fp8_blocks(matrix: Matrix) -> float:
    """A byte, and a float32 for 128 x 128."""
    return matrix.rows * matrix.inner + 4 * -(-matrix.rows // 128) * -(-matrix.inner // 128)


def mxfp8(matrix: Matrix) -> float:
    """A byte, and a byte for 32."""
    return matrix.rows * matrix.inner * (1 + 1 / 32)


def mxfp4(matrix: Matrix) -> float:
    """Half a byte, and a byte for 32."""
    return matrix.rows * matrix.inner * (1 / 2 + 1 / 32)


def fp8_grid(matrix: Matrix) -> float:
    """A byte, and a float32 for 128 x 128; experts have Model Optimizer's scales of a tensor."""
    return fp8_tensor(matrix) if ".experts." in matrix.name else fp8_blocks(matrix)


def fp8_modelopt_rows(matrix: Matrix) -> float:
    """A byte, and a float32 a row; experts as above."""
    return fp8_tensor(matrix) if ".experts." in matrix.name else fp8_rows(matrix)


def grouped(bits: int, group: int) -> Callable[[Matrix], float]:
    """Integers of so many bits, and a two-byte scale a group of a row."""
    return lambda matrix: matrix.rows * matrix.inner * (bits / 8 + 2 / group)


def total(config: dict[str, Any], stored: Stored, *, ranks: int = 1, stem: str = "model") -> float:
    """The bytes of a rank."""
    text = {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    text |= config.get("text_config", config)
    found = 0.0
    for matrix in matrices(text, ranks, stem):
        held = None if matrix.fixed else stored(matrix)
        plain = matrix.rows * matrix.inner * matrix.element
        found += matrix.copies * (plain if held is None else held)
        if held is not None and matrix.name.endswith("kv_b_proj"):
            found += plain  # attention reads a dequantised copy
    return found


def matrices(text: dict[str, Any], ranks: int, stem: str) -> Iterator[Matrix]:
    """All that a rank holds; a vector is a matrix of one column."""
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    vocab = -(-text["vocab_size"] // 64) * 64
    yield Matrix(f"{stem}.embed_tokens", vocab, hidden, fixed=True)
    if not text["tie_word_embeddings"]:
        yield Matrix("lm_head", vocab, hidden)
    yield _vector(f"{stem}.norm", hidden)
    for i in range(layers):
        layer = f"{stem}.layers.{i}"
        yield _vector(f"{layer}.norms", 2 * hidden)
        if "kv_lora_rank" in text:
            yield from _latent(text, f"{layer}.self_attn")
        elif text.get("layer_types", ["full"] * layers)[i] == "linear_attention":
            yield from _delta_net(text, f"{layer}.linear_attn")
        else:
            yield from _attention(text, f"{layer}.self_attn")
        yield from _mlp(text, i, f"{layer}.mlp", ranks)


def _vector(name: str, elements: int, element: float = PLAIN) -> Matrix:
    return Matrix(name, elements, 1, fixed=True, element=element)


def _latent(text: dict[str, Any], name: str) -> Iterator[Matrix]:
    hidden, heads, lora = text["hidden_size"], text["num_attention_heads"], text["q_lora_rank"]
    kv, rope, nope = text["kv_lora_rank"], text["qk_rope_head_dim"], text["qk_nope_head_dim"]
    yield Matrix(f"{name}.q_a_proj", lora, hidden)
    yield Matrix(f"{name}.kv_a_proj_with_mqa", kv + rope, hidden)
    yield Matrix(f"{name}.q_b_proj", heads * (nope + rope), lora)
    yield Matrix(f"{name}.kv_b_proj", heads * (nope + text["v_head_dim"]), kv)
    yield Matrix(f"{name}.o_proj", hidden, heads * text["v_head_dim"])
    yield _vector(f"{name}.norms", lora + kv)
    if "index_topk" in text:
        heads, dim = text["index_n_heads"], text["index_head_dim"]
        yield Matrix(f"{name}.indexer.wq_b", heads * dim, lora)
        yield Matrix(f"{name}.indexer.wk", dim + heads, hidden, fixed=True)
        yield _vector(f"{name}.indexer.k_norm", 2 * dim, 4)


def _attention(text: dict[str, Any], name: str) -> Iterator[Matrix]:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    keys, dim = text["num_key_value_heads"], text.get("head_dim", hidden // heads)
    gate = 2 if "linear_num_key_heads" in text else 1
    yield Matrix(f"{name}.q_proj", gate * heads * dim, hidden)
    yield Matrix(f"{name}.k_proj", keys * dim, hidden)
    yield Matrix(f"{name}.v_proj", keys * dim, hidden)
    yield Matrix(f"{name}.o_proj", hidden, heads * dim)
    if text["model_type"] != "llama":
        yield _vector(f"{name}.norms", 2 * dim)


def _delta_net(text: dict[str, Any], name: str) -> Iterator[Matrix]:
    hidden, heads = text["hidden_size"], text["linear_num_value_heads"]
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = heads * text["linear_value_head_dim"]
    yield Matrix(f"{name}.in_proj_qkv", 2 * keys + values, hidden)
    yield Matrix(f"{name}.in_proj_z", values, hidden)
    yield Matrix(f"{name}.in_proj_b", heads, hidden)
    yield Matrix(f"{name}.in_proj_a", heads, hidden)
    yield Matrix(f"{name}.out_proj", hidden, values)
    yield Matrix(f"{name}.conv1d", 2 * keys + values, text["linear_conv_kernel_dim"], fixed=True)
    yield _vector(f"{name}.A_log", heads, 4)
    yield _vector(f"{name}.dt_bias", heads)
    yield _vector(f"{name}.norm", text["linear_value_head_dim"])


def _mlp(text: dict[str, Any], layer: int, name: str, ranks: int) -> Iterator[Matrix]:
    experts = text.get("n_routed_experts") or text.get("num_experts")
    dense = layer < text.get("first_k_dense_replace", 0)
    if not experts or dense:
        yield from _gated(text, name, text["intermediate_size"])
        return
    width = text["moe_intermediate_size"]
    router_quantised = text["model_type"] == "qwen3_moe"
    yield Matrix(f"{name}.gate", experts, text["hidden_size"], fixed=not router_quantised)
    for matrix in _gated(text, f"{name}.experts.0", width):
        yield matrix._replace(copies=experts // ranks)
    if text.get("topk_method") == "noaux_tc":
        yield _vector(f"{name}.gate.e_score_correction_bias", experts, 4)
    if text.get("n_shared_experts"):
        yield from _gated(text, f"{name}.shared_experts", text["n_shared_experts"] * width)
    if text.get("shared_expert_intermediate_size"):
        yield from _gated(text, f"{name}.shared_expert", text["shared_expert_intermediate_size"])
        yield Matrix(f"{name}.shared_expert_gate", 1, text["hidden_size"], fixed=True)


def _gated(text: dict[str, Any], name: str, width: int) -> Iterator[Matrix]:
    hidden = text["hidden_size"]
    yield Matrix(f"{name}.gate_proj", width, hidden)
    yield Matrix(f"{name}.up_proj", width, hidden)
    yield Matrix(f"{name}.down_proj", hidden, width)
