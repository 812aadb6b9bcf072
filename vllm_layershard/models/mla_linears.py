"""The linears of an MLA model, and the layouts that can split them.

Source: vLLM 0.32, model_executor/models/deepseek_v2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from vllm_layershard.errors import PlanError
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.mla_config import MlaConfig, Moe
from vllm_layershard.plan import Linear

FUSED: Final = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""vLLM's name of a fused linear -> the names of its parts in a checkpoint."""

VOCAB_PADDING: Final = 64
"""Source: vLLM 0.32, layers/vocab_parallel_embedding.py, `DEFAULT_VOCAB_PADDING_SIZE`."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A linear before tensor parallelism: sizes of the parts fused along its output."""

    suffix: str
    outs: tuple[int, ...]
    inner: int
    split: Literal["out", "in", "none"]
    quantisable: bool = True


def layer_linears(
    config: MlaConfig, layer_id: int, deployment: Deployment, whole_dense: bool
) -> Iterator[Linear]:
    """The linears of one layer as one rank holds them, in forward order.

    `whole_dense`: dense MLPs, too, are whole on every rank under sequence-parallel MoE.

    Raises:
        PlanError: an fp8 block would be split over two ranks.
    """
    tp = deployment.layout.tp
    for shape in _shapes(config, layer_id, deployment, whole_dense):
        prefix = f"model.layers.{layer_id}.{shape.suffix}"
        rows = sum(shape.outs) // (tp if shape.split == "out" else 1)
        columns = shape.inner // (tp if shape.split == "in" else 1)
        quantised = shape.quantisable and config.quantization.applies_to(prefix, FUSED)
        if quantised:
            _check_blocks(config, prefix, shape, tp)
        yield Linear(
            prefix=prefix,
            layer_id=layer_id,
            tp_replicated=tp == 1 or shape.split == "none",
            tensors=config.quantization.tensors((rows, columns), config.dtype, quantised),
        )


def _shapes(
    config: MlaConfig, layer_id: int, deployment: Deployment, whole_dense: bool
) -> Iterator[_Shape]:
    """The linears of one layer in forward order."""
    c = config
    qk, latent = c.nope + c.rope, c.kv_lora + c.rope
    if c.q_lora is not None:
        yield _Shape("self_attn.fused_qkv_a_proj", (c.q_lora, latent), c.hidden, "none")
        yield _Shape("self_attn.q_b_proj", (c.heads * qk,), c.q_lora, "out")
    else:
        yield _Shape("self_attn.kv_a_proj_with_mqa", (latent,), c.hidden, "none")
        yield _Shape("self_attn.q_proj", (c.heads * qk,), c.hidden, "out")
    if c.indexer is not None and c.indexer.layers[layer_id]:
        assert c.q_lora is not None, "read_mla checks it"
        dim, heads = c.indexer.dim, c.indexer.heads
        yield _Shape("self_attn.indexer.wk_weights_proj", (dim, heads), c.hidden, "none", False)
        yield _Shape("self_attn.indexer.wq_b", (heads * dim,), c.q_lora, "none")
    yield _Shape("self_attn.kv_b_proj", (c.heads * (c.nope + c.v),), c.kv_lora, "out")
    yield _Shape("self_attn.o_proj", (c.hidden,), c.heads * c.v, "in")
    whole = deployment.sequence_parallel_moe
    if c.moe is None or not c.moe.layers[layer_id]:
        yield from _mlp("mlp", c.hidden, c.intermediate, whole and whole_dense)
        return
    if c.moe.shared:
        intermediate = c.moe.intermediate * c.moe.shared
        yield from _mlp("mlp.shared_experts", c.hidden, intermediate, whole)
    yield _Shape("mlp.gate", (c.moe.experts,), c.hidden, "none", False)


def _mlp(stem: str, hidden: int, intermediate: int, whole: bool) -> Iterator[_Shape]:
    yield _Shape(
        f"{stem}.gate_up_proj", (intermediate, intermediate), hidden, "none" if whole else "out"
    )
    yield _Shape(f"{stem}.down_proj", (hidden,), intermediate, "none" if whole else "in")


def check_split(config: MlaConfig, deployment: Deployment) -> None:
    """Refuse a layout that cannot split this model.

    Raises:
        PlanError: names the size that does not divide.
    """
    c, tp = config, deployment.layout.tp
    sizes = {"num_attention_heads": c.heads, "intermediate_size": c.intermediate}
    if c.moe is not None and c.moe.shared:
        sizes["moe_intermediate_size * n_shared_experts"] = c.moe.intermediate * c.moe.shared
    sizes["the padded vocabulary"] = -(-c.vocab // VOCAB_PADDING) * VOCAB_PADDING
    for key, size in sizes.items():
        if size % tp:
            raise PlanError(f"tp = {tp}: does not divide {key} = {size:,}; choose one that does")
    if c.moe is not None:
        _check_experts(config, c.moe, deployment)


def _check_experts(config: MlaConfig, moe: Moe, deployment: Deployment) -> None:
    ranks = deployment.expert_ranks
    if deployment.ep:
        if ranks > moe.experts:
            raise PlanError(
                f"{ranks} ranks share {moe.experts} routed experts: with expert parallelism "
                "every rank needs one; use fewer ranks"
            )
        return
    block = config.quantization.block
    whole = ranks if block is None or ranks == 1 else ranks * block[0]
    if moe.intermediate % whole:
        unit = "" if whole == ranks else f" in whole fp8 blocks of {whole // ranks}"
        raise PlanError(
            f"without expert parallelism {ranks} ranks split every routed expert, and "
            f"moe_intermediate_size = {moe.intermediate:,} does not divide by that{unit}; "
            "use --ep or fewer ranks"
        )


def _check_blocks(config: MlaConfig, prefix: str, shape: _Shape, tp: int) -> None:
    """Source: vLLM 0.32, quantization/utils/fp8_utils.py, `validate_fp8_block_shape`."""
    block = config.quantization.block
    assert block is not None, "only called for quantised linears"
    if tp > 1 and shape.split == "in" and shape.inner // tp % block[1]:
        size, unit = shape.inner // tp, block[1]
    elif tp > 1 and shape.split == "out" and any(out // tp % block[0] for out in shape.outs):
        size, unit = max(out // tp for out in shape.outs if out // tp % block[0]), block[0]
    elif shape.split != "out" or tp == 1:
        odd = [out for out in shape.outs[:-1] if out % block[0]]
        if not odd:
            return
        size, unit = odd[0], block[0]
    else:
        return
    raise PlanError(
        f"{prefix}: {size:,} on each of {tp} tensor-parallel ranks is not a multiple of the "
        f"fp8 block of {unit}; choose another tp"
    )
