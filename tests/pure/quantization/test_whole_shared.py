"""Shared experts of Quark's OCP MX whose groups ranks would split are whole with --ep."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_layershard.errors import PlanError
from vllm_layershard.models import Deployment, FoundModel, Model, model_of
from vllm_layershard.models.attention_linears import shared_expert_prefixes
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

BY_32 = {"qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "dtype": "fp4"}
SECTION: dict[str, Any] = {
    "quant_method": "Quark",
    "export": {"kv_cache_group": [], "pack_method": "reorder"},
    "exclude": ["lm_head", "re:.*linear_attn.*", "re:.*mlp.gate$"],
    "global_quant_config": {
        "weight": BY_32 | {"is_dynamic": False},
        "input_tensors": BY_32 | {"is_dynamic": True},
    },
}
NAME = "Qwen--Qwen3-Next-80B-A3B-Instruct"
SHARED, HIDDEN, WIDTH = "layers.0.mlp.shared_expert", 2048, 160


def read(section: dict[str, Any] = SECTION) -> Model:
    config = json.loads((_BUNDLED / f"{NAME}.json").read_text())
    config |= {"shared_expert_intermediate_size": WIDTH, "quantization_config": section}
    return model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))


def laid_out(tp: int, dp: int = 1, *, ep: bool = True) -> Deployment:
    return Deployment(ParallelLayout(tp=tp, dp=dp), ep=ep)


def widths(model: Model, deployment: Deployment) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """Whether each is whole, and the shape of its weight: two of four bits in a byte."""
    return {
        linear.prefix.rpartition(".")[2]: (linear.tp_replicated, linear.tensors[0].shape)
        for linear in model.linears(deployment)
        if f"{SHARED}." in linear.prefix
    }


@pytest.mark.parametrize(("tp", "dp"), [(2, 1), (4, 1), (2, 2)])
def test_it_is_whole_and_outside_the_op_of_the_experts(tp: int, dp: int) -> None:
    model, deployment = read(), laid_out(tp, dp)
    assert widths(model, deployment) == {
        "gate_up_proj": (True, (2 * WIDTH, HIDDEN // 2)),
        "down_proj": (True, (HIDDEN, WIDTH // 2)),
    }
    assert not shared_expert_prefixes(model, deployment)


def test_where_no_group_is_split_it_is_as_ever() -> None:
    assert len(shared_expert_prefixes(read(), laid_out(1))) == 48 * 3


def test_without_expert_parallelism_it_is_refused() -> None:
    """As by vLLM, which says: enable expert parallelism."""
    with pytest.raises(PlanError, match=r"shared_expert\.down_proj: 80 columns .* or --ep"):
        read().linears(laid_out(2, ep=False))


def test_one_that_is_not_quantised_is_split() -> None:
    section = SECTION | {"exclude": [*SECTION["exclude"], "re:.*shared_expert.*"]}
    assert widths(read(section), laid_out(2)) == {
        "gate_up_proj": (False, (WIDTH, HIDDEN)),
        "down_proj": (False, (HIDDEN, WIDTH // 2)),
    }
