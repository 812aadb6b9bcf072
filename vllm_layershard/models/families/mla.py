"""MLA: DeepSeek V2-Lite, V3, R1, V3.1, V3.2, Kimi-K2, K2.5's language model, GLM-5, 5.1, 5.2.

Names, shapes and dtypes as vLLM 0.32 builds them: model_executor/models/deepseek_v2.py, and
models/deepseek_v32/ for the architectures with sparse attention on CUDA. A test builds that
class and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_layershard.models.blueprint import Moe, Work
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.language_model import STEM, TEXT_ONLY, language_model_of
from vllm_layershard.models.families.mla_config import MlaConfig, read_mla
from vllm_layershard.models.families.mlp import gated_mlp
from vllm_layershard.models.kv_cache import LatentCache
from vllm_layershard.models.operation import Batch
from vllm_layershard.models.quantization import Quantization
from vllm_layershard.models.shape import Shape, Vector, require_divisible
from vllm_layershard.models.sources.config_file import ConfigFile

_SPARSE_CLASSES = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
"""These have a class of their own on CUDA, which also keeps dense MLPs whole under
sequence-parallel MoE. Source: vLLM 0.32, models/deepseek_v32/nvidia/model.py."""


@dataclass(frozen=True, slots=True)
class MlaBlueprint:
    """A model of this family; implements `blueprint.Blueprint`."""

    architecture: str
    config: MlaConfig
    stem: str = "model.layers"
    tied: bool = False

    @property
    def layers(self) -> int:
        """Hidden layers."""
        return self.config.layers

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.config.hidden

    @property
    def vocab(self) -> int:
        """Tokens."""
        return self.config.vocab

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""
        return self.config.dtype

    @property
    def quantization(self) -> Quantization:
        """Of the checkpoint."""
        return self.config.quantization

    @property
    def moe(self) -> Moe | None:
        """Routed experts."""
        return self.config.moe

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        return self.config.notes

    def check_split(self, deployment: Deployment) -> None:
        """Heads, dense MLPs and shared experts."""
        c = self.config
        sizes = {"num_attention_heads": c.heads, "intermediate_size": c.intermediate}
        if c.moe is not None and c.shared_experts:
            sizes["moe_intermediate_size * n_shared_experts"] = self._shared_intermediate
        require_divisible(deployment.layout.tp, sizes)

    def shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one layer in forward order."""
        yield from self.attention_shapes("self_attn", layer_id, deployment)
        yield from self._mlp_shapes(layer_id, deployment)

    def attention_shapes(self, name: str, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """The linears of one attention, whose module in the layer is `name`."""
        c, tp = self.config, deployment.layout.tp
        heads = c.heads // tp
        qk, latent = c.nope + c.rope, c.kv_lora + c.rope
        if c.q_lora is not None:
            yield Shape(f"{name}.fused_qkv_a_proj", (c.q_lora, latent), c.hidden, "none")
            yield Shape(f"{name}.q_b_proj", (heads * qk,), c.q_lora, "out")
        else:
            yield Shape(f"{name}.kv_a_proj_with_mqa", (latent,), c.hidden, "none")
            yield Shape(f"{name}.q_proj", (heads * qk,), c.hidden, "out")
        if c.indexer is not None and c.indexer.layers[layer_id]:
            assert c.q_lora is not None, "read_mla checks it"
            dim, index_heads = c.indexer.dim, c.indexer.heads
            yield Shape(
                f"{name}.indexer.wk_weights_proj",
                (dim, index_heads),
                c.hidden,
                "none",
                quantisable=False,
            )
            yield Shape(f"{name}.indexer.wq_b", (index_heads * dim,), c.q_lora, "none")
        yield Shape(
            f"{name}.kv_b_proj",
            (heads * (c.nope + c.v),),
            c.kv_lora,
            "out",
            after="attention",
            absorbed=True,
        )
        yield Shape(f"{name}.o_proj", (c.hidden,), heads * c.v, "in")

    def _mlp_shapes(self, layer_id: int, deployment: Deployment) -> Iterator[Shape]:
        """Those of the dense MLP, or of the shared experts and the router."""
        c, tp = self.config, deployment.layout.tp
        whole = deployment.sequence_parallel_moe
        if c.moe is None or not c.moe.layers[layer_id]:
            sparse = self.architecture in _SPARSE_CLASSES and deployment.layout.pp == 1
            yield from gated_mlp("mlp", c.hidden, c.intermediate, tp, whole=whole and sparse)
            return
        if c.shared_experts:
            yield from gated_mlp(
                "mlp.shared_experts", c.hidden, self._shared_intermediate, tp, whole=whole
            )
        yield Shape(
            "mlp.gate", (c.moe.experts,), c.hidden, "none", quantisable=False, after="experts"
        )

    def vectors(self, layer_id: int, deployment: Deployment) -> Iterator[Vector]:
        """Norms, and the router's correction bias."""
        c = self.config
        yield Vector("norms", 2 * c.hidden + (c.q_lora or 0) + c.kv_lora, c.dtype)
        if c.indexer is not None and c.indexer.layers[layer_id]:
            yield Vector("self_attn.indexer.k_norm", 2 * c.indexer.dim, "float32")
        if c.moe is not None and c.moe.layers[layer_id] and c.correction_bias:
            yield Vector("mlp.gate.e_score_correction_bias", c.moe.experts, "float32")

    def cache(self, layer_id: int, deployment: Deployment) -> LatentCache:
        """The latent; in sparse models also the indexer's key where the layer has one."""
        c = self.config
        if c.indexer is None:
            return LatentCache(c.kv_lora, c.rope)
        indexer_dim = c.indexer.dim if c.indexer.layers[layer_id] else 0
        return LatentCache(c.kv_lora, c.rope, sparse=True, indexer_dim=indexer_dim)

    def attention(self, layer_id: int, deployment: Deployment, batch: Batch) -> Work:
        """Over full heads in a dense prefill, over the latent else; the indexer over all."""
        c = self.config
        heads = c.heads // deployment.layout.tp
        latent = c.kv_lora + c.rope
        context, flops = batch.context, 0.0
        if c.indexer is not None:
            if c.indexer.layers[layer_id]:
                flops += 2.0 * batch.tokens * context * c.indexer.heads * c.indexer.dim
            context = min(context, float(c.indexer.topk))
        over_latent = batch.decode or c.indexer is not None
        width = latent + c.kv_lora if over_latent else c.nope + c.rope + c.v
        rows = batch.tokens * context if batch.decode else batch.tokens
        return Work(
            flops=flops + 2.0 * batch.tokens * context * heads * width,
            moved_bytes=rows * latent * DTYPE_BYTES[c.dtype]
            + 2.0 * batch.tokens * heads * (c.nope + c.rope + c.v),
        )

    @property
    def _shared_intermediate(self) -> int:
        assert self.config.moe is not None, "shared experts come with routed ones"
        return self.config.moe.intermediate * self.config.shared_experts


def build(architecture: str, config: ConfigFile) -> MlaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture != "KimiK25ForConditionalGeneration":
        return MlaBlueprint(architecture=architecture, config=read_mla(config))
    read = read_mla(language_model_of(config))
    return MlaBlueprint(
        architecture=architecture,
        config=read._replace(notes=(*read.notes, TEXT_ONLY)),
        stem=STEM,
    )
