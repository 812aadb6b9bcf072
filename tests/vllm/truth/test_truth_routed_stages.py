"""A model or a stage without routed experts is refused where vLLM's own class refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from truth.compare import Case, Truth, names
from truth.published import PUBLISHED
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment, FoundModel, Model, model_of
from vllm_layershard.models.model import _ROUTED_STAGES
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import ParallelLayout

ONE = ((1, 1, False),)
FIRST = {"first_k_dense_replace": 8}
SPARSE = {"decoder_sparse_step": 16}

CASES = {
    "glm4_moe": Case(PUBLISHED["glm4_moe"], FIRST, ONE, refused="No Glm4MoE layer found"),
    "glm4_moe_lite": Case(PUBLISHED["glm4_moe_lite"], FIRST, ONE, refused="No Glm4MoE layer found"),
    "qwen3_moe": Case(PUBLISHED["qwen3_moe"], SPARSE, ONE, refused="No Qwen3MoE layer found"),
    "qwen3_next": Case(PUBLISHED["qwen3_next"], SPARSE, ONE, refused="No Qwen3Next layer found"),
    "qwen3_vl_moe": Case(
        PUBLISHED["qwen3_vl_moe"], {}, ONE, text=SPARSE, refused="No Qwen3Moe layer found"
    ),
    "bailing_moe_v2": Case("inclusionAI--Ling-1T", FIRST | {"num_hidden_layers": 8}, ONE),
    "deepseek_v2": Case(PUBLISHED["deepseek_v2"], FIRST, ONE),
    "deepseek_v3": Case(PUBLISHED["deepseek_v3"], FIRST, ONE),
    "glm_moe_dsa": Case(PUBLISHED["glm_moe_dsa"], FIRST, ONE),
    # It routes every layer, whatever these say.
    "qwen3_5_moe": Case(PUBLISHED["qwen3_5_moe"], SPARSE, ONE, "Qwen3_5MoeForCausalLM"),
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)


def read(kind: str, **changes: Any) -> Model:
    return model_of(FoundModel("m", "local:m", ConfigFile("config", PUBLISHED[kind] | changes)))


def said(model: Model, pp: int) -> str:
    try:
        model.require_split(Deployment(ParallelLayout(pp=pp)))
    except LayerShardError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "changes", "pp", "stage"),
    [
        ("glm4_moe", {"first_k_dense_replace": 3}, 4, "stage 0 would have layers 0 to 1 of m"),
        ("glm4_moe", {"first_k_dense_replace": 3}, 2, ""),
        ("glm4_moe_lite", {"first_k_dense_replace": 4}, 2, "stage 0 would have layers 0 to 3 of m"),
        ("qwen3_moe", {"mlp_only_layers": [6, 7]}, 4, "stage 3 would have layers 6 to 7 of m"),
        ("qwen3_next", {"decoder_sparse_step": 8}, 2, "stage 0 would have layers 0 to 3 of m"),
        ("deepseek_v3", {"first_k_dense_replace": 4}, 2, ""),
    ],
)
def test_a_stage_without_routed_experts_is_named(
    kind: str, changes: dict[str, Any], pp: int, stage: str
) -> None:
    found = said(read(kind, **changes), pp)
    assert stage in found
    assert bool(found) == bool(stage)


def test_what_is_refused_is_what_vllm_refuses() -> None:
    refused = {case.stated()["architectures"][0] for case in CASES.values() if case.refused}
    assert refused == set(_ROUTED_STAGES)
