"""LongCat-Flash: two attentions and two dense MLPs a layer, and one MoE beside them.

Its zero experts have no weights: a token that chooses one passes unchanged.
Source: vLLM 0.32, model_executor/models/longcat_flash.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Moe, Work
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.families.mla import MlaBlueprint
from vllm_layershard.models.families.mla_config import MlaConfig
from vllm_layershard.models.families.mlp import gated_mlp
from vllm_layershard.models.kv_cache import Caches
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.quantization import Quantization, quantization_of
from vllm_layershard.models.shape import Shape, Vector
from vllm_layershard.models.sources.config_file import ConfigFile

_TWO = (0, 1)


@dataclass(frozen=True, slots=True)
class LongcatBlueprint:
    """A model of this family; implements `blueprint.Blueprint`. `mla` says all but the MoE."""

    mla: MlaBlueprint
    moe: Moe
    zero_experts: int

    @property
    def layers(self) -> int:
        """Hidden layers, of two attentions each."""
        return self.mla.layers

    @property
    def stem(self) -> str:
        """The name of the list of decoder layers."""
        return self.mla.stem

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.mla.hidden

    @property
    def vocab(self) -> int:
        """Tokens."""
        return self.mla.vocab

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return self.mla.tied

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""
        return self.mla.dtype

    @property
    def quantization(self) -> Quantization:
        """Of the checkpoint."""
        return self.mla.quantization

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        return self.mla.notes

    def check_split(self, deployment: Deployment) -> None:
        """Heads and dense MLPs."""
        self.mla.check_split(deployment)

    def shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one layer in forward order; the MoE runs before the first MLP."""
        c, tp = self.mla.config, deployment.layout.tp
        for i in _TWO:
            yield from self.mla.attention_shapes(f"self_attn.{i}", layer_id, deployment)
            if i == 0:
                choices = self.moe.experts + self.zero_experts
                yield Shape(
                    "mlp.gate.classifier",
                    (choices,),
                    c.hidden,
                    "none",
                    quantisable=False,
                    dtype="float32",
                    after="experts",
                )
            yield from gated_mlp(f"mlps.{i}", c.hidden, c.intermediate, tp)

    def vectors(self, layer_id: int, deployment: Deployment) -> Iterator[Vector]:
        """Norms of both attentions, and the router's correction bias."""
        for _ in _TWO:
            yield from self.mla.vectors(layer_id, deployment)
        choices = self.moe.experts + self.zero_experts
        yield Vector("mlp.gate.e_score_correction_bias", choices, "float32")

    def cache(self, layer_id: int, deployment: Deployment) -> Caches:
        """A latent for each of the two attentions."""
        return Caches((self.mla.cache(layer_id, deployment),) * 2)

    def attention(self, layer_id: int, deployment: Deployment, batch: Batch) -> Work:
        """Of one of the two."""
        return self.mla.attention(layer_id, deployment, batch)


def build(architecture: str, config: ConfigFile) -> LongcatBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    layers = config.integer("num_layers", high=MAX_LAYERS)
    dtype, notes = dtype_of(config)
    experts = config.integer("n_routed_experts", high=MAX_EXPERTS)
    zero_experts = config.integer("zero_expert_num", low=0, high=MAX_EXPERTS)
    mla = MlaConfig(
        layers=layers,
        hidden=config.integer("hidden_size"),
        intermediate=config.integer("ffn_hidden_size"),
        vocab=config.integer("vocab_size", high=1 << 26),
        heads=config.integer("num_attention_heads", high=1 << 14),
        q_lora=config.integer("q_lora_rank"),
        kv_lora=config.integer("kv_lora_rank", high=1 << 16),
        nope=config.integer("qk_nope_head_dim", high=1 << 14),
        rope=config.integer("qk_rope_head_dim", high=1 << 14),
        v=config.integer("v_head_dim", high=1 << 14),
        moe=None,
        shared_experts=0,
        correction_bias=False,
        indexer=None,
        dtype=dtype,
        quantization=quantization_of(config),
        notes=notes,
    )
    return LongcatBlueprint(
        mla=MlaBlueprint(architecture=architecture, config=mla),
        moe=Moe(
            experts=experts,
            topk=config.integer("moe_topk", high=experts),
            intermediate=config.integer("expert_ffn_hidden_size"),
            layers=(True,) * layers,
        ),
        zero_experts=zero_experts,
    )
