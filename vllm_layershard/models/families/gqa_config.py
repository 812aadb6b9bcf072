"""GqaConfig: the sizes that all grouped-query models state in the same words, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Moe
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.families.gqa import Attention
from vllm_layershard.models.quantization import Quantization, quantization_of
from vllm_layershard.models.sources.config_file import ConfigFile


@dataclass(frozen=True, slots=True)
class GqaConfig:
    """Sizes in elements, named as in config.json without the common words."""

    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    quantization: Quantization
    tied: bool
    notes: tuple[str, ...]

    def attention(self, **fields: Any) -> Attention:
        """The attention with these sizes; `windows` are full unless given."""
        fields.setdefault("windows", (None,) * self.layers)
        return Attention(self.heads, self.kv_heads, self.head_dim, **fields)

    @property
    def common(self) -> dict[str, Any]:
        """What a blueprint takes over unchanged."""
        return {
            "hidden": self.hidden,
            "vocab": self.vocab,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "tied": self.tied,
            "notes": self.notes,
        }


def read_gqa(config: ConfigFile) -> GqaConfig:
    """Check every size that these families share.

    Raises:
        ModelError: names the file, the key and what is wrong with it.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", high=1 << 14)
    kv_heads = config.optional_integer("num_key_value_heads", high=1 << 14) or heads
    if heads % kv_heads:
        config.fail("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads")
    head_dim = config.optional_integer("head_dim", high=1 << 14)
    if head_dim is None and hidden % heads:
        config.fail("head_dim", "is missing, and num_attention_heads does not divide hidden_size")
    dtype, notes = dtype_of(config)
    return GqaConfig(
        layers=config.integer("num_hidden_layers", high=MAX_LAYERS),
        hidden=hidden,
        vocab=config.integer("vocab_size", high=1 << 26),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        dtype=dtype,
        quantization=quantization_of(config),
        tied=config.boolean("tie_word_embeddings"),
        notes=notes,
    )


def read_moe(
    config: ConfigFile,
    layers: tuple[bool, ...],
    *,
    experts: str,
    intermediate: str = "moe_intermediate_size",
    name: str = "mlp.experts",
    bias: bool = False,
) -> Moe:
    """The routed experts; `experts` and `intermediate` are the family's keys."""
    count = config.integer(experts, high=MAX_EXPERTS)
    return Moe(
        experts=count,
        topk=config.integer("num_experts_per_tok", high=count),
        intermediate=config.integer(intermediate),
        layers=layers,
        name=name,
        bias=bias,
    )


def norm_if(wanted: bool) -> Literal["none", "head"]:
    """Norms of queries and keys by head, or none."""
    return "head" if wanted else "none"


def windows_of(config: ConfigFile, layers: int) -> tuple[int | None, ...]:
    """The window of each layer by `layer_types`; all full where there are none."""
    kinds = config.strings("layer_types")
    if not kinds:
        return (None,) * layers
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    if "sliding_attention" not in kinds:
        return (None,) * layers
    window = config.integer("sliding_window", high=1 << 30)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
