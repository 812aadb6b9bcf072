"""Shared experts of Quark's OCP MX whose groups tensor-parallel ranks would split.

vLLM keeps them whole on each rank with expert parallelism, and refuses the layout without.
"""

import pytest

from tests.vllm.truth.test_truth_hybrids import SMALL, TYPES
from tests.vllm.truth.test_truth_mixed import BY_32, BY_TENSOR, _quark
from truth.compare import Case, Truth, names

NEXT, QWEN35 = "Qwen--Qwen3-Next-80B-A3B-Instruct", "Qwen--Qwen3.5-397B-A17B"
OUTSIDE = ["lm_head", "re:.*linear_attn.*", "re:.*mlp.gate$", "re:mtp.*"]
MX = _quark(BY_32, exclude=OUTSIDE)
EVERY = ((2, 1, True), (8, 1, True), (2, 2, True), (1, 2, True), (1, 1, False))
ALONE = ((2, 1, False),)
WIDTH = {"shared_expert_intermediate_size": 160}
"""Ranks would have 80 or 20 columns of it."""

OTHER = "model.layers.1.mlp.shared_expert"
CASES = {
    "qwen3-next": Case(NEXT, SMALL | WIDTH | {"quantization_config": MX}, EVERY),
    "qwen3-next drafting": Case(
        NEXT,
        SMALL | WIDTH | {"quantization_config": _quark(BY_32, exclude=OUTSIDE[:3])},
        ((2, 1, True),),
        drafted=1,
    ),
    "qwen3-next by layer": Case(
        NEXT,
        SMALL
        | WIDTH
        | {
            "quantization_config": _quark(
                BY_32,
                exclude=[*OUTSIDE, f"{OTHER}.down_proj"],
                layer_quant_config={"model.layers.2.mlp.shared_expert.down_proj": BY_TENSOR},
            )
        },
        ((2, 1, True),),
    ),
    "qwen3.5": Case(
        QWEN35,
        SMALL | WIDTH | {"layer_types": TYPES, "quantization_config": MX},
        EVERY,
        "Qwen3_5MoeForCausalLM",
    ),
    "without experts' parallelism": Case(
        NEXT,
        SMALL | WIDTH | {"quantization_config": MX},
        ALONE,
        refused="cannot be tensor-parallelized",
    ),
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
