"""LongCat-Flash: two attentions and two dense MLPs a layer, and one MoE beside them.

Its zero experts have no weights: a token that chooses one passes unchanged.
Source: vLLM 0.32, model_executor/models/longcat_flash.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Blueprint, Segment
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.families.mla import read_latent
from vllm_layershard.models.parts.experts import Experts
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router
from vllm_layershard.models.shape import SplitSize
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    layers = _layers(config)
    dtype, notes = dtype_of(config)
    experts = config.integer("n_routed_experts", high=MAX_EXPERTS)
    zero_experts = config.integer("zero_expert_num", low=0, high=MAX_EXPERTS)
    hidden = config.integer("hidden_size")
    width = config.integer("ffn_hidden_size")
    vocab = config.integer("vocab_size", high=1 << 26)
    attention = read_latent(config, compressed=True)
    router = Router(
        "mlp.gate.classifier", experts + zero_experts, dtype="float32", correction_bias=True
    )
    layer = (
        # The MoE runs before the first MLP.
        Segment(attention._replace(name="self_attn.0"), (router, GatedMlp("mlps.0", width))),
        Segment(attention._replace(name="self_attn.1"), (GatedMlp("mlps.1", width),)),
    )
    return Blueprint(
        layers=(layer,) * layers,
        hidden=hidden,
        vocab=vocab,
        dtype=dtype,
        split=(
            SplitSize("num_attention_heads", attention.heads),
            SplitSize("intermediate_size", width),
        ),
        experts=Experts(
            experts=experts,
            topk=config.integer("moe_topk", high=experts),
            intermediate=config.integer("expert_ffn_hidden_size"),
        ),
        notes=notes,
    )


def _layers(config: ConfigFile) -> int:
    """Decoder layers: `num_hidden_layers` counts the attentions, two a layer.

    Source: transformers 5, models/longcat_flash/configuration_longcat_flash.py.

    Raises:
        ModelError: names the key; both are stated and are not of one model.
    """
    attentions = config.optional_integer("num_hidden_layers", low=2, high=2 * MAX_LAYERS)
    if attentions is None:
        return config.integer("num_layers", high=MAX_LAYERS)
    layers = config.optional_integer("num_layers", high=MAX_LAYERS)
    if attentions % 2 or layers not in (None, attentions // 2):
        config.fail(
            "num_hidden_layers",
            f"{attentions} attentions, two a layer, are not those of num_layers = {layers}; leave "
            "one of the two out",
        )
    return attentions // 2
