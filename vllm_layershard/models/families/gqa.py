"""What models with grouped-query attention state in the same words, checked.

What these families differ in is in their own files. A test builds vLLM's classes and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Blueprint, Segment
from vllm_layershard.models.cache.longest import longest_of
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.parts.experts import Experts
from vllm_layershard.models.parts.feed_forward import GatedMlp
from vllm_layershard.models.parts.grouped import Heads
from vllm_layershard.models.shape import SplitSize
from vllm_layershard.models.sources.config_file import ConfigFile


class GqaSizes(NamedTuple):
    """Sizes in elements, named as in config.json without the common words.

    `longest`: tokens of the longest sequence; None where nothing says it.
    """

    layers: int
    hidden: int
    vocab: int
    heads: Heads
    dtype: str
    tied: bool
    notes: tuple[str, ...]
    longest: int | None

    def blueprint(
        self,
        segments: Iterable[Segment],
        split: Mapping[str, int],
        experts: Experts | None = None,
        *,
        repeats: bool = True,
    ) -> Blueprint:
        """The model of these layers, a segment each; `split` are its sizes beside the heads.

        `repeats`: vLLM's class repeats key-value heads where there are fewer than ranks.
        """
        return Blueprint(
            layers=tuple((segment,) for segment in segments),
            hidden=self.hidden,
            vocab=self.vocab,
            dtype=self.dtype,
            split=(
                SplitSize("num_attention_heads", self.heads.query),
                SplitSize("num_key_value_heads", self.heads.key_value, repeated=repeats),
                *(SplitSize(key, size) for key, size in split.items()),
            ),
            experts=experts,
            tied=self.tied,
            notes=self.notes,
            longest=self.longest,
        )


def read_gqa(config: ConfigFile, *, ties: bool, whole: bool = False) -> GqaSizes:
    """Check every size that these families share.

    `ties`: vLLM's class makes the embedding its head where the config says so; others have a head
    whatever it says. `whole`: the heads must share out the model's width.

    Raises:
        ModelError: names the file, the key and what is wrong with it.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", high=1 << 14)
    kv_heads = config.optional_integer("num_key_value_heads", high=1 << 14) or heads
    if heads % kv_heads:
        config.fail("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads")
    head_dim = config.optional_integer("head_dim", high=1 << 14) or hidden // heads
    if (whole and hidden % heads) or not head_dim:
        config.fail("num_attention_heads", f"{heads} does not divide hidden_size = {hidden:,}")
    dtype, notes = dtype_of(config)
    return GqaSizes(
        layers=config.integer("num_hidden_layers", high=MAX_LAYERS),
        hidden=hidden,
        vocab=config.integer("vocab_size", high=1 << 26),
        heads=Heads(heads, kv_heads, head_dim),
        dtype=dtype,
        tied=config.boolean("tie_word_embeddings") and ties,
        notes=notes,
        longest=longest_of(config.values),
    )


def read_experts(
    config: ConfigFile,
    key: str,
    *,
    intermediate: int | None = None,
    name: str = "mlp.experts",
    bias: bool = False,
) -> Experts:
    """The routed experts: `key` is their number's. The width is `intermediate`, or else stated.

    Raises:
        ModelError: names the file, the key and what is wrong with it.
    """
    experts = config.integer(key, high=MAX_EXPERTS)
    return Experts(
        experts=experts,
        topk=config.integer("num_experts_per_tok", high=experts),
        intermediate=intermediate or config.integer("moe_intermediate_size"),
        name=name,
        bias=bias,
    )


def mlp_split(
    dense: GatedMlp, routed: tuple[bool, ...], shared: GatedMlp | None = None
) -> dict[str, int]:
    """The widths that tensor parallelism splits; layers that are `routed` have no dense MLP."""
    split = {} if all(routed) else {"intermediate_size": dense.intermediate}
    if shared is not None:
        split["the width of the shared experts"] = shared.intermediate
    return split


def norm_if(wanted: bool) -> Literal["none", "head"]:
    """Norms of queries and keys by head, or none."""
    return "head" if wanted else "none"
