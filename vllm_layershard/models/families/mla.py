"""DeepSeek V2-Lite, V3, R1, V3.1, V3.2, Kimi-K2, K2.5's language model, GLM-4.7-Flash, GLM-5.x.

Source: vLLM 0.32, model_executor/models/deepseek_v2.py and glm4_moe_lite.py, and
models/deepseek_v32/ for the architectures with sparse attention on CUDA.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Blueprint, Drafts, Segment
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.families.activation import require_decoder, require_silu
from vllm_layershard.models.families.language_model import language_model_of, within
from vllm_layershard.models.parts.experts import Experts
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router, Whole
from vllm_layershard.models.parts.latent import Indexer, LatentAttention
from vllm_layershard.models.shape import SplitSize
from vllm_layershard.models.sources.config_file import ConfigFile

_SPARSE_CLASSES = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
"""These have a class of their own on CUDA, which also keeps dense MLPs whole under
sequence-parallel MoE, and fuses all-reduces into norms.
Source: vLLM 0.32, models/deepseek_v32/nvidia/model.py."""

_DRAFTING = ("deepseek_v3", "deepseek_v32", "glm_moe_dsa")
"""Model types with draft layers. Source: vLLM 0.32, config/speculative.py, `hf_config_override`."""


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "KimiK25ForConditionalGeneration":
        return within(_read(language_model_of(config), _MoE()), tied=False)
    if architecture == "Glm4MoeLiteForCausalLM":
        return _read(config, _MoE(shared_whole="never", glm=True, drafts=True))
    fused = architecture in _SPARSE_CLASSES
    drafts = config.string("model_type") in _DRAFTING
    return _read(config, _MoE("unpipelined" if fused else "never", drafts=drafts, partial=fused))


def read_latent(config: ConfigFile, *, compressed: bool = False) -> LatentAttention:
    """The sizes of the attention; `compressed`: its queries must be.

    Raises:
        ModelError: names the file, the key and what is wrong with it.
    """
    require_decoder(config)
    heads = config.integer("num_attention_heads", high=1 << 14)
    q_lora = config.optional_integer("q_lora_rank")
    if compressed:
        q_lora = config.integer("q_lora_rank")
    return LatentAttention(
        name="self_attn",
        heads=heads,
        q_lora=q_lora,
        kv_lora=config.integer("kv_lora_rank", high=1 << 16),
        nope=config.integer("qk_nope_head_dim", high=1 << 14),
        rope=config.integer("qk_rope_head_dim", high=1 << 14),
        v=config.integer("v_head_dim", high=1 << 14),
    )


def _read(config: ConfigFile, moe: _MoE) -> Blueprint:
    layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    hidden = config.integer("hidden_size")
    require_silu(config)
    dtype, notes = dtype_of(config)
    experts, routed = _experts(config, layers)
    heads = config.integer("num_attention_heads", high=1 << 14)
    if hidden % heads and config.get("model_type") == "deepseek_v2":  # Its config class refuses it.
        config.fail("num_attention_heads", f"{heads} does not divide hidden_size = {hidden:,}")
    split = {"num_attention_heads": heads}
    mlps: tuple[GatedMlp, ...] = ()
    if not all(routed):
        width = config.integer("intermediate_size")
        mlps = (GatedMlp("mlp", width, whole=moe.dense_whole, partial=moe.partial),)
        split["intermediate_size"] = width
    routers: tuple[GatedMlp | Router, ...] = ()
    if experts is not None:
        shared_experts = config.optional_integer("n_shared_experts", low=0, high=1 << 10) or 0
        width = shared_experts * experts.intermediate
        split["moe_intermediate_size * n_shared_experts"] = width
        shared = GatedMlp(
            "mlp.shared_experts", width, whole=moe.shared_whole, partial=True, shared_expert=True
        )
        routers = (shared, moe.router(config, experts.experts))
    return Blueprint(
        layers=tuple(
            (Segment(attention, routers if is_routed else mlps),)
            for attention, is_routed in zip(
                _attentions(config, layers, partial=moe.partial), routed, strict=True
            )
        ),
        hidden=hidden,
        vocab=config.integer("vocab_size", high=1 << 26),
        dtype=dtype,
        split=tuple(SplitSize(key, size) for key, size in split.items()),
        experts=experts,
        notes=notes,
        drafts=_drafts(config, routers) if moe.drafts else None,
    )


def _drafts(config: ConfigFile, mlps: tuple[GatedMlp | Router, ...]) -> Drafts | None:
    """Layers with routed experts, of which each has an indexer where any has.

    Source: vLLM 0.32, models/deepseek_mtp.py, glm4_moe_lite_mtp.py and deepseek_v32/attention.py.
    """
    count = config.optional_integer("num_nextn_predict_layers", low=0, high=MAX_LAYERS)
    if not count or not mlps:
        return None
    attention, sparse = read_latent(config), _sparse(config, 1)
    if sparse is not None:
        attention = attention._replace(topk=sparse.topk, indexer=sparse.indexer)
    return Drafts(((Segment(attention, mlps),),) * count)


class _MoE(NamedTuple):
    """How a class builds its MLPs: what stays whole under sequence-parallel MoE, and the router.

    `drafts`: vLLM has a class for its draft layers. `partial`: each norm adds up what the attention
    or the MLP before it has left on the ranks.
    """

    dense_whole: Whole = "never"
    shared_whole: Whole = "always"
    glm: bool = False
    drafts: bool = False
    partial: bool = False

    def router(self, config: ConfigFile, experts: int) -> Router:
        """GLM's is float32 and always has a correction bias."""
        if self.glm:
            return Router("mlp.gate", experts, dtype="float32", correction_bias=True)
        corrected = config.string("topk_method") == "noaux_tc"
        return Router("mlp.gate", experts, correction_bias=corrected, shares_out=True)


def _attentions(config: ConfigFile, layers: int, *, partial: bool) -> tuple[LatentAttention, ...]:
    """The attention of each layer."""
    attention = read_latent(config)._replace(partial=partial)
    sparse = _sparse(config, layers)
    if sparse is None:
        return (attention,) * layers
    if attention.q_lora is None:
        config.fail("q_lora_rank", "is missing; a model with index_topk needs it")
    return sparse.of_each_layer(attention)


def _experts(config: ConfigFile, layers: int) -> tuple[Experts | None, tuple[bool, ...]]:
    """The routed experts, and which layers have them.

    Source: vLLM 0.32, models/deepseek_v2.py, `DeepseekV2DecoderLayer`, `DeepseekV2MoE`.
    """
    count = config.optional_integer("n_routed_experts", high=MAX_EXPERTS)
    if count is None:
        return None, (False,) * layers
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    every = config.optional_integer("moe_layer_freq", high=MAX_LAYERS) or 1
    experts = Experts(
        experts=count,
        topk=config.integer("num_experts_per_tok", high=count),
        intermediate=config.integer("moe_intermediate_size"),
    )
    return experts, tuple(i >= first and i % every == 0 for i in range(layers))


class _Sparse(NamedTuple):
    """Sparse attention: how many tokens an indexer chooses, and which layers have one."""

    topk: int
    indexer: Indexer
    has_indexer: tuple[bool, ...]

    def of_each_layer(self, attention: LatentAttention) -> tuple[LatentAttention, ...]:
        """The attention of each layer, made of what they share."""
        follows = attention._replace(topk=self.topk)
        chooses = follows._replace(indexer=self.indexer)
        return tuple(chooses if has else follows for has in self.has_indexer)


def _sparse(config: ConfigFile, layers: int) -> _Sparse | None:
    """Source: vLLM 0.32, models/deepseek_v2.py, `DeepseekV2MLAAttention` (`_skip_topk`).

    And model_executor/models/config.py, `DeepseekV32ForCausalLM`, which asserts `index_topk`.
    """
    topk = config.optional_integer("index_topk")
    if topk is None and config.get("model_type") == "deepseek_v32":
        config.fail(
            "index_topk",
            "is missing, and vLLM refuses a model of this architecture without it; write it into "
            "config.json",
        )
    if topk is None:
        return None
    pattern = config.get("index_topk_pattern")
    for key in ("index_topk_freq", "index_skip_topk_offset"):
        if pattern is None and config.values.get(key, 0) is None:
            config.fail(key, "is null, and vLLM 0.32 calculates with it; write a number")
    every = config.optional_integer("index_topk_freq", high=MAX_LAYERS) or 1
    offset = config.optional_integer("index_skip_topk_offset", low=0, high=MAX_LAYERS)
    offset = 2 if offset is None else offset
    if pattern is not None and not isinstance(pattern, (str, list)):
        config.fail("index_topk_pattern", "is neither a string nor a list")
    has = [max(i - offset + 1, 0) % every == 0 for i in range(layers)]
    if pattern is not None:
        has = [i >= len(pattern) or pattern[i] != "S" for i in range(layers)]
    indexer = Indexer(
        heads=config.integer("index_n_heads", high=1 << 12),
        dim=config.integer("index_head_dim", high=1 << 12),
    )
    return _Sparse(topk, indexer, tuple(has))
