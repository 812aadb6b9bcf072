"""`--layers auto` judges each phase by what moves in it."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_layershard import HardwareError, Layout, PlanError, plan_model
from vllm_layershard.planner.results.plan_result import PlanResult

EIGHT = Layout(dp=8, ep=True)
PHASES = "prefill,decode"


def _chosen(model: str = "DeepSeek-V3", layout: Layout = EIGHT, **options: Any) -> PlanResult:
    return plan_model(model, "auto", layout, **({"hardware": "H200"} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"move": "activations"},
        {"move": "activations", "placement": "striped", "hide_in": "decode"},
        {"move": "auto", "move_weights_from": 8193},
    ],
)
def test_what_hides_by_weights_alone_is_not_chosen_where_activations_move(
    options: dict[str, Any],
) -> None:
    with pytest.raises(
        PlanError, match=r"stays hidden in .* on H200, where activations move; name"
    ):
        _chosen(**options)


@pytest.mark.parametrize("options", [{}, {"move": "auto", "move_weights_from": 8192}])
def test_where_weights_move_they_decide(options: dict[str, Any]) -> None:
    found = _chosen(**options)
    assert found.planned.config.layers == ("o_proj",)
    assert found.failures() == ()


def test_what_hides_by_activations_alone_is_chosen_where_they_move() -> None:
    """A decode of few reads a part of the weight, and so takes less time."""
    options: dict[str, Any] = {"placement": "striped", "batch": 1, "hide_in": "decode"}
    options |= {"model": "GLM-4.7", "layout": Layout(dp=4, pp=2), "hardware": "MI300X"}
    with pytest.raises(PlanError, match=r"stays hidden in decode on MI300X; name"):
        _chosen(**options)
    found = _chosen(**options, move="activations", tokens=64)
    assert found.planned.config.layers
    assert found.failures("decode") == ()
    (note,) = [text for text in found.warnings if text.startswith("--layers auto chose")]
    assert note.endswith("what stays hidden in decode on MI300X, where activations move")


def test_each_set_is_judged_with_the_threshold_that_is_found_for_it() -> None:
    """Fewer layers have a lower one. All of the weights would hide, but not below their own."""
    options: dict[str, Any] = {"hardware": "MI300X", "placement": "striped", "move": "auto"}
    options |= {"tokens": 512, "cached": 120000}
    given = _chosen(**options, move_weights_from=512).planned.config
    assert given.layers == ("o_proj", "mlp.down_proj")
    same = plan_model("DeepSeek-V3", given.layers, EIGHT, **options).planned.config
    assert same.move_weights_from is not None
    assert same.move_weights_from > 512
    found = _chosen(**options)
    chosen = found.planned.config
    assert chosen.layers == ("o_proj",)
    assert chosen.layer_stride == 2
    assert chosen.move_weights_from is not None
    assert chosen.move_weights_from <= 512
    assert found.failures() == ()


def test_a_decode_that_hides_by_activations_is_judged_so_where_no_threshold_is_given() -> None:
    options: dict[str, Any] = {"hardware": "RTX-PRO-6000", "placement": "striped", "batch": 4}
    options |= {"model": "Qwen3-235B-A22B-FP8", "layout": Layout(dp=4, ep=True), "move": "auto"}
    found = _chosen(**options, hide_in=PHASES)
    assert found.planned.config.layers == ("qkv_proj",)
    assert found.failures(PHASES) == ()
    weights_from = found.planned.config.move_weights_from
    assert weights_from is not None
    assert 4 < weights_from <= 8192
    with pytest.raises(PlanError, match=r"stays hidden in prefill and decode on RTX-PRO-6000; "):
        _chosen(**options, hide_in=PHASES, move_weights_from=4)


def test_where_nothing_hides_either_way_the_refusal_says_so() -> None:
    with pytest.raises(PlanError, match=", each with the quicker of weights and activations;"):
        _chosen(hardware="RTX-PRO-6000", move="auto", tokens=1024, batch=512, hide_in=PHASES)


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_linears_that_gather_more_than_they_save_are_not_chosen(placement: str) -> None:
    """Of forwards just below the threshold; the prefill moves weights, and hides."""
    found = _chosen(placement=placement, move="auto", move_weights_from=8192, tokens=8192)
    gathered = found.memory.gathered_bytes
    assert min(found.planned.saved_bytes) > gathered > 0
    with pytest.raises(PlanError, match=r"no linear of .* saves anything and stays hidden"):
        _chosen(placement=placement, move="auto", move_weights_from=65536, tokens=65536)
    plain = _chosen(placement=placement, tokens=65536)
    assert 8 * gathered > min(plain.planned.saved_bytes) > 0


def test_a_number_that_activations_need_is_asked_for() -> None:
    with pytest.raises(HardwareError, match="--layers auto: MI300X lacks "):
        _chosen(layout=Layout(dp=32, ep=True), hardware="MI300X", move="activations")
