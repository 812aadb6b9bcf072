"""The digest tells any two plans apart, and `differences` says where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_layershard.plan import Series, build_plan, differences

O_PROJ = Series("o_proj", (0, 1, 2, 3), 100, 4, layout="bfloat16[4x4]")


def plan(series=O_PROJ, group_size=2, prefetch_step=1, placement="round_robin", layer_stride=1):
    return build_plan([series], group_size, prefetch_step, placement, layer_stride)


def test_equal_inputs_have_equal_digests():
    assert plan().digest() == plan(replace(O_PROJ)).digest()
    assert differences(plan().document(), plan().document()) == []


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (plan(replace(O_PROJ, name="q_b_proj")), "plan.series[0].series.name: 'o_proj' != "),
        (plan(replace(O_PROJ, layer_bytes=101)), "plan.series[0].series.layer_bytes: 100 != 101"),
        (plan(replace(O_PROJ, small_bytes=5)), "plan.series[0].series.small_bytes: 4 != 5"),
        (plan(replace(O_PROJ, layout="x")), "plan.series[0].series.layout: 'bfloat16[4x4]' != 'x'"),
        (plan(replace(O_PROJ, layer_ids=(0, 1, 2, 4))), "plan.series[0].series.layer_ids[3]: 3 !="),
        (plan(replace(O_PROJ, layer_ids=(0, 1, 2))), "plan.series[0].series.layer_ids: [0, 1, 2, "),
        (plan(group_size=3), "plan.group_size: 2 != 3"),
        (plan(prefetch_step=2), "plan.prefetch_step: 1 != 2"),
        (plan(placement="replicated"), "plan.placement: 'round_robin' != 'replicated'"),
        (plan(layer_stride=2), "plan.layer_stride: 1 != 2"),
    ],
)
def test_any_change_changes_the_digest_and_is_named(other, where):
    assert plan().digest() != other.digest()
    assert any(line.startswith(where) for line in differences(plan().document(), other.document()))


def test_another_version_is_another_plan(monkeypatch):
    mine = plan()
    before = mine.digest()
    monkeypatch.setattr("vllm_layershard.plan.plan.__version__", "9.9.9")
    assert mine.digest() != before


def test_documents_of_different_shape_are_told_apart():
    assert differences({"a": 1}, {"b": 1}) == ["plan.a: 1 != None", "plan.b: None != 1"]
