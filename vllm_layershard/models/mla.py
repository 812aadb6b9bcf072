"""MLA: DeepSeek V2-Lite, V3, R1, V3.1, V3.2, Kimi-K2 and GLM-5, 5.1.

Names, shapes and dtypes as vLLM 0.32 builds them: model_executor/models/deepseek_v2.py, and
models/deepseek_v32/ for the architectures with sparse attention on CUDA. A test builds that
class and compares. Draft (MTP) layers are no part of it: vLLM loads them for speculation only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vllm_layershard.errors import ConfigError
from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.family import Batch, Precision, Step, WeightBytes
from vllm_layershard.models.mla_config import MlaConfig, read_mla
from vllm_layershard.models.mla_linears import FUSED, VOCAB_PADDING, check_split, layer_linears
from vllm_layershard.plan import Linear, stage_layers

SERVES: Final[dict[str, frozenset[str]]] = {
    "DeepseekV2ForCausalLM": frozenset({"deepseek_v2"}),
    "DeepseekV3ForCausalLM": frozenset({"deepseek_v3", "kimi_k2"}),
    "DeepseekV32ForCausalLM": frozenset({"deepseek_v32"}),
    "GlmMoeDsaForCausalLM": frozenset({"glm_moe_dsa"}),
}
"""Architecture -> the model types that go with it."""

_SPARSE_CLASSES = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
"""These have a class of their own on CUDA, which also keeps dense MLPs whole under
sequence-parallel MoE. Source: vLLM 0.32, models/deepseek_v32/nvidia/model.py."""

_DS_MLA_BYTES = 656
"""One token of `fp8_ds_mla`: 512 fp8, four float32 scales, 64 bf16.
Source: vLLM 0.32, layers/attention/mla_attention.py, `get_kv_cache_spec`."""

_INDEXER_SCALE_BLOCK = 128
"""Elements of the indexer's key that share a float32 scale. Source: deepseek_v2.py, `Indexer`."""


@dataclass(frozen=True, slots=True)
class MlaModel:
    """A model of this family; implements `family.Model`."""

    name: str
    source: str
    architecture: str
    config: MlaConfig

    @property
    def num_layers(self) -> int:
        """Hidden layers, without draft layers."""
        return self.config.layers

    @property
    def dtype(self) -> str:
        """Of what is not quantised."""
        return self.config.dtype

    @property
    def quantization(self) -> str:
        """`none` or the method."""
        return self.config.quantization.name

    @property
    def is_moe(self) -> bool:
        """vLLM keeps data-parallel ranks in lockstep only if so."""
        return self.config.moe is not None

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 if there are none."""
        return self.config.moe.experts if self.config.moe is not None else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed while reading the config."""
        return self.config.notes

    def linears(self, deployment: Deployment) -> tuple[Linear, ...]:
        """Every linear of every hidden layer, as one rank holds it.

        Raises:
            PlanError: this layout cannot split the model.
        """
        check_split(self.config, deployment)
        return tuple(
            linear
            for layer_id in range(self.num_layers)
            for linear in self._layer_linears(layer_id, deployment)
        )

    def weight_bytes(self, deployment: Deployment, rank: int) -> WeightBytes:
        """Bytes of one global rank.

        `derived`: MLA keeps W_UK and W_UV, which are views of kv_b_proj where that is not
        quantised and a dequantised copy of it where it is.
        Source: vLLM 0.32, mla_attention.py, `MLAAttention.process_weights_after_loading`.
        """
        check_split(self.config, deployment)
        c, layout = self.config, deployment.layout
        stage = layout.stage_of(rank)
        layers = stage_layers(c.layers, layout.pp)[stage]
        element = DTYPE_BYTES[c.dtype]
        vocab = -(-c.vocab // VOCAB_PADDING) * VOCAB_PADDING // layout.tp * c.hidden * element
        experts_here = self._experts_here(deployment, rank)
        linears = [x for i in layers for x in self._layer_linears(i, deployment)]
        absorbed = [x for x in linears if x.is_named("kv_b_proj") and len(x.tensors) > 1]
        return WeightBytes(
            embedding=vocab if stage == 0 else 0,
            head=vocab if stage == layout.pp - 1 else 0,
            linears=sum(x.large_bytes + x.small_bytes for x in linears),
            experts=sum(self._expert_bytes(i, deployment) * experts_here for i in layers),
            norms=sum(self._norm_bytes(i) for i in layers)
            + (c.hidden * element if stage == layout.pp - 1 else 0),
            derived=sum(x.tensors[0].nbytes * element for x in absorbed),
        )

    def kv_bytes_per_token(self, kv_cache_dtype: str, layers: Sequence[int]) -> int:
        """Cache bytes of one token in these layers; every tensor-parallel rank holds all of it.

        Raises:
            ConfigError: a cache dtype that is not known for this model.
        """
        c = self.config
        latent = c.kv_lora + c.rope
        sparse = c.indexer is not None
        if kv_cache_dtype in ("auto", "bfloat16", "float16"):
            dtype = c.dtype if kv_cache_dtype == "auto" else kv_cache_dtype
            per_layer = latent * DTYPE_BYTES[dtype]
        elif kv_cache_dtype in ("fp8", "fp8_e4m3") and not sparse:
            per_layer = latent
        elif kv_cache_dtype in ("fp8", "fp8_e4m3", "fp8_ds_mla") and (c.kv_lora, c.rope) == (
            512,
            64,
        ):
            per_layer = _DS_MLA_BYTES
        else:
            raise ConfigError(
                f"--kv-cache-dtype {kv_cache_dtype}: its bytes are not known for this model; "
                "known are auto, bfloat16, float16, fp8, fp8_e4m3"
            )
        total = per_layer * len(layers)
        if c.indexer is not None:
            key = c.indexer.dim + c.indexer.dim // _INDEXER_SCALE_BLOCK * DTYPE_BYTES["float32"]
            total += key * sum(c.indexer.layers[i] for i in layers)
        return total

    def steps(self, layer_id: int, deployment: Deployment, batch: Batch) -> tuple[Step, ...]:
        """The work of one layer on one rank, in forward order.

        Attention takes the place of kv_b_proj, whose product it holds. Every step moves its
        weights once and its activations in and out; experts are chosen uniformly at random.
        """
        steps: list[Step] = []
        for linear in self._layer_linears(layer_id, deployment):
            if linear.is_named("kv_b_proj"):
                steps.append(self._attention(layer_id, linear, deployment, batch))
            elif linear.is_named("mlp.gate"):
                steps.append(_product(linear, batch.tokens))
                steps.append(self._experts(layer_id, deployment, batch))
            else:
                whole = linear.tp_replicated and ".mlp." in linear.prefix
                tokens = batch.tokens / deployment.layout.tp if whole else batch.tokens
                steps.append(_product(linear, tokens))
        return tuple(steps)

    def _layer_linears(self, layer_id: int, deployment: Deployment) -> Iterator[Linear]:
        whole_dense = self.architecture in _SPARSE_CLASSES and deployment.layout.pp == 1
        return layer_linears(self.config, layer_id, deployment, whole_dense)

    def _experts_here(self, deployment: Deployment, rank: int) -> int:
        """Routed experts of one layer on a rank. Source: vLLM, `determine_expert_map`."""
        moe = self.config.moe
        if moe is None:
            return 0
        ranks = deployment.expert_ranks
        if not deployment.ep or ranks == 1:
            return moe.experts
        extra = deployment.expert_rank(rank) < moe.experts % ranks
        return moe.experts // ranks + extra

    def _expert_bytes(self, layer_id: int, deployment: Deployment) -> int:
        """Bytes of one routed expert on one rank, scales included; 0 in a dense layer.

        Source: vLLM 0.32, `UnquantizedFusedMoEMethod` and `Fp8MoEMethod.create_weights`.
        """
        c, moe = self.config, self.config.moe
        if moe is None or not moe.layers[layer_id]:
            return 0
        inner = moe.intermediate if deployment.ep else moe.intermediate // deployment.expert_ranks
        prefix = f"model.layers.{layer_id}.mlp.experts"
        quantised = c.quantization.applies_to(prefix, FUSED)
        half = c.quantization.tensors((inner, c.hidden), c.dtype, quantised)
        down = c.quantization.tensors((c.hidden, inner), c.dtype, quantised)
        return sum(t.nbytes for t in (*half, *half, *down))

    def _norm_bytes(self, layer_id: int) -> int:
        """Norms of one layer, and the router's correction bias."""
        c = self.config
        total = (2 * c.hidden + (c.q_lora or 0) + c.kv_lora) * DTYPE_BYTES[c.dtype]
        if c.indexer is not None and c.indexer.layers[layer_id]:
            total += 2 * c.indexer.dim * DTYPE_BYTES["float32"]
        if c.moe is not None and c.moe.layers[layer_id] and c.moe.correction_bias:
            total += c.moe.experts * DTYPE_BYTES["float32"]
        return total

    def _attention(self, layer_id: int, kv_b: Linear, deployment: Deployment, batch: Batch) -> Step:
        """Attention with kv_b_proj: over full heads in a dense prefill, over the latent else."""
        c = self.config
        heads = c.heads // deployment.layout.tp
        latent = c.kv_lora + c.rope
        context, flops = batch.context, _product(kv_b, batch.tokens).flops
        if c.indexer is not None:
            if c.indexer.layers[layer_id]:
                flops += 2.0 * batch.tokens * context * c.indexer.heads * c.indexer.dim
            context = min(context, float(c.indexer.topk))
        over_latent = batch.decode or c.indexer is not None
        width = latent + c.kv_lora if over_latent else c.nope + c.rope + c.v
        cached = latent * DTYPE_BYTES[c.dtype]
        rows = batch.tokens * context if batch.decode else batch.tokens
        return Step(
            linear="",
            flops=flops + 2.0 * batch.tokens * context * heads * width,
            moved_bytes=kv_b.large_bytes
            + rows * cached
            + 2.0 * batch.tokens * heads * (c.nope + c.rope + c.v),
            precision="bf16",
        )

    def _experts(self, layer_id: int, deployment: Deployment, batch: Batch) -> Step:
        """Routed experts, evenly loaded; all ranks' tokens together decide which are read."""
        c, moe = self.config, self.config.moe
        assert moe is not None, "only called for MoE layers"
        layout = deployment.layout
        together = batch.tokens * layout.dp * layout.pcp
        touched = 1.0 - (1.0 - moe.topk / moe.experts) ** together
        pairs = batch.tokens * moe.topk / layout.tp
        held = self._expert_bytes(layer_id, deployment) * self._experts_here(deployment, 0)
        quantised = c.quantization.applies_to(f"model.layers.{layer_id}.mlp.experts", FUSED)
        return Step(
            linear="",
            flops=2.0 * pairs * 3 * c.hidden * moe.intermediate,
            moved_bytes=held * touched + 2.0 * pairs * 2 * c.hidden,
            precision="fp8" if quantised else "bf16",
        )


def _product(linear: Linear, tokens: float) -> Step:
    """The matrix product of a linear: 2 x tokens x out x in."""
    weight = linear.tensors[0]
    rows, columns = weight.shape
    precision: Precision = "fp8" if weight.dtype == "float8_e4m3fn" else "bf16"
    return Step(
        linear=linear.prefix,
        flops=2.0 * tokens * rows * columns,
        moved_bytes=weight.nbytes + 2.0 * tokens * (rows + columns),
        precision=precision,
    )


def build(name: str, source: str, architecture: str, config: ConfigFile) -> MlaModel:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    return MlaModel(name=name, source=source, architecture=architecture, config=read_mla(config))
