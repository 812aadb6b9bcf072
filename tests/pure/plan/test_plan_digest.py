"""The digest tells any two plans apart, and `differences` says where."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.plan import Series, build_plan, differences

"""How long an example takes says how busy the machine is."""

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
        (plan(replace(O_PROJ, tp_replicated=True)), "plan.series[0].series.tp_replicated: False !"),
        (plan(group_size=3), "plan.group_size: 2 != 3"),
        (plan(prefetch_step=2), "plan.prefetch_step: 1 != 2"),
        (plan(placement="replicated"), "plan.placement: 'round_robin' != 'replicated'"),
        (plan(placement="striped"), "plan.series[0].owner[0]: 0 != -2"),
        (plan(layer_stride=2), "plan.layer_stride: 1 != 2"),
    ],
)
def test_any_change_changes_the_digest_and_is_named(other, where):
    assert plan().digest() != other.digest()
    assert any(line.startswith(where) for line in differences(plan().document(), other.document()))


INPUTS = st.tuples(
    st.lists(
        st.builds(
            Series,
            name=st.sampled_from(["a", "b"]),
            layer_ids=st.sampled_from([(0, 1), (0, 2), (1, 2, 3)]),
            layer_bytes=st.integers(1, 2),
            small_bytes=st.integers(0, 1),
            tp_replicated=st.booleans(),
            layout=st.sampled_from(["", "bfloat16[1]"]),
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda series: series.name,
    ),
    st.integers(2, 3),
    st.integers(0, 1),
    st.sampled_from(["round_robin", "striped", "replicated"]),
    st.integers(1, 2),
)


@given(INPUTS, INPUTS)
def test_digests_and_differences_tell_plans_apart_exactly_when_inputs_differ(mine, theirs):
    one, other = build_plan(*mine), build_plan(*theirs)
    lines = differences(one.document(), other.document())
    assert (one.digest() == other.digest()) == (mine == theirs) == (lines == [])
    assert all(line.startswith("plan.") and " != " in line for line in lines)
    mirrored = differences(other.document(), one.document())
    assert sorted(line.partition(":")[0] for line in lines) == sorted(
        line.partition(":")[0] for line in mirrored
    )


def test_another_process_comes_to_the_same_digest():
    """Whatever the seed of its hashes: this is what the ranks of a group rely on."""
    script = (
        "from vllm_layershard.plan import Series, build_plan\n"
        "s = Series('o_proj', (0, 1, 2, 3), 100, 4, layout='bfloat16[4x4]')\n"
        "print(build_plan([s], 2, 1).digest())"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            cwd=Path(__file__).parents[3],
        )
        assert result.stdout.strip() == plan().digest(), result.stderr


def test_the_digest_is_a_sha_256():
    assert len(bytes.fromhex(plan().digest())) == 32


def test_another_version_is_another_plan(monkeypatch):
    mine = plan()
    before = mine.digest()
    monkeypatch.setattr("vllm_layershard.plan.plan.__version__", "9.9.9")
    assert mine.digest() != before


def test_documents_of_different_shape_are_told_apart():
    assert differences({"a": 1}, {"b": 1}) == ["plan.a: 1 != None", "plan.b: None != 1"]
