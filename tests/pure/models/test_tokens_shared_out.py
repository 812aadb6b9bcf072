"""Which linears tensor-parallel ranks compute for a part of the tokens, and which for all."""

from __future__ import annotations

import pytest

from vllm_layershard.models import Batch, Deployment, layer_operations, read_model
from vllm_layershard.plan import ParallelLayout

BATCH = Batch(tokens=1000, context=500.0, decode=False)
PLAIN = Deployment(ParallelLayout(tp=4))
SEQUENCE_PARALLEL = Deployment(ParallelLayout(tp=4, dp=2), ep=True)


@pytest.mark.parametrize(
    ("name", "router", "choices", "shares_out"),
    [
        ("DeepSeek-V3", "mlp.gate", 256, True),
        ("Qwen3-235B-A22B", "mlp.gate", 128, True),
        ("Qwen3-Next-80B-A3B-Instruct", "mlp.gate", 512, True),
        ("gpt-oss-120b", "mlp.router", 128, True),
        ("Mixtral-8x22B-v0.1", "block_sparse_moe.gate", 8, False),
        ("GLM-4.7", "mlp.gate", 160, False),
        ("MiniMax-M2", "mlp.gate", 256, False),
        ("Ling-1T", "mlp.gate", 256, False),
        ("LongCat-Flash-Chat", "mlp.gate.classifier", 768, False),
    ],
)
def test_a_router_sees_all_tokens_but_where_its_class_has_sequence_parallel_moe(
    name: str, router: str, choices: int, shares_out: bool
) -> None:
    """Source: vLLM 0.32, `sequence_parallel_chunk` in the classes' files."""
    model = read_model(name)
    for deployment, parts in ((PLAIN, 1), (SEQUENCE_PARALLEL, 4 if shares_out else 1)):
        layer = layer_operations(model.blueprint, model.num_layers - 1, deployment, BATCH)
        (found,) = [operation for operation in layer if operation.linear.endswith(router)]
        assert found.flops == 2 * (1000 / parts) * choices * model.blueprint.hidden


def test_a_shared_expert_that_is_whole_sees_a_part_of_the_tokens() -> None:
    model = read_model("DeepSeek-V3")
    for deployment in (PLAIN, SEQUENCE_PARALLEL):
        layer = layer_operations(model.blueprint, 60, deployment, BATCH)
        (up,) = [op for op in layer if op.linear.endswith("shared_experts.gate_up_proj")]
        assert up.flops == 2 * 1000 * 2 * 2048 * 7168 / 4  # its rows or its tokens are divided
