"""A layout that splits a size unevenly is refused: no family leaves one out of its `split`."""

from __future__ import annotations

import pytest

from vllm_layershard.errors import PlanError
from vllm_layershard.models import Deployment, bundled_names, read_model
from vllm_layershard.plan import ParallelLayout


@pytest.mark.parametrize("name", bundled_names())
def test_every_tp_is_planned_or_refused_by_name(name: str) -> None:
    """A size that `split` lacks is an AssertionError where a part divides it."""
    model = read_model(name)
    refused = set()
    for tp in range(1, 129):
        deployment = Deployment(ParallelLayout(tp=tp), ep=model.is_moe)
        try:
            model.linears(deployment)
            model.kv_bytes_per_token("auto", range(model.num_layers), deployment)
        except PlanError:
            refused.add(tp)
    assert {1, 2} & refused == set()
    assert {3, 5, 7, 11} & refused, "nothing was refused"


@pytest.mark.parametrize(("tp", "fewer"), [(8, False), (16, True), (32, True)])
def test_gpt_oss_is_refused_where_it_has_fewer_heads_than_ranks(tp: int, fewer: bool) -> None:
    """vLLM's other classes repeat key-value heads; this one divides them, to none."""
    model = read_model("gpt-oss-120b")
    deployment = Deployment(ParallelLayout(tp=tp), ep=True)
    if not fewer:
        assert model.linears(deployment)
        return
    with pytest.raises(PlanError, match=f"tp = {tp}: does not divide num_key_value_heads = 8;"):
        model.linears(deployment)
