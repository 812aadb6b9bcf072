"""Every layout that the CPU serves: equal to the unsharded server of the same layout.

Eager ones to the bit; pipeline stages only compiled, because vLLM 0.32 cannot run them eagerly on
the CPU. Groups, owners and bytes are the plan's.
"""

from __future__ import annotations

import pytest

from serving.answers import ask, check_identical, check_to_rounding
from serving.layout import Layout
from serving.reports import check_reports
from serving.server import Server

pytestmark = pytest.mark.serve

LAYOUT = pytest.mark.matrix(part="layouts")
STAGE = pytest.mark.matrix(part="stages")

LAYOUTS = {
    "tp2": (Layout(tp=2), ["fused_qkv_a_proj"]),
    "dp2-tp2": (Layout(dp=2, tp=2), ["fused_qkv_a_proj", "o_proj", "q_b_proj"]),
    "two-nodes": (Layout(dp=2, nodes=2), ["o_proj", "q_b_proj"]),
}

STAGES = Layout(dp=2, pp=2)
"""Nine layers on two stages: the second begins at layer 5."""

COMPILED = {
    **{name: (*case, {}) for name, case in LAYOUTS.items()},
    "dp2-pp2": (STAGES, ["o_proj", "q_b_proj"], {}),
    "dp2-pp2-first-kept": (STAGES, ["o_proj", "q_b_proj"], {"keep_first": True}),
}


@LAYOUT
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LAYOUTS)
def test_eager_layouts_equal_the_unsharded_server(name, model, prompts, reference, tmp_path):
    layout, layers = LAYOUTS[name]
    with Server(model, tmp_path / "plain", layout=layout) as server:
        plain = ask(server, prompts)
    assert [answer.token_ids for answer in plain] == reference

    sharding = {"layers": layers, "verify": True, "report_dir": str(tmp_path / "reports")}
    with Server(model, tmp_path / "sharded", layout=layout, sharding=sharding) as server:
        check_identical(ask(server, prompts), plain)
        check_reports(tmp_path / "reports", model, layers, layout=layout)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=STAGE if case[0] is STAGES else LAYOUT)
        for name, case in COMPILED.items()
    ],
)
def test_compiled_layouts_equal_the_control_and_the_unsharded_server_to_rounding(
    name, model, prompts, reference, tmp_path
):
    layout, layers, options = COMPILED[name]

    def answers_of(case, sharding):
        with Server(
            model, tmp_path / case, layout=layout, eager=False, sharding=sharding
        ) as server:
            answers = ask(server, prompts)
            if case == "sharded":
                check_reports(tmp_path / "reports", model, layers, layout=layout, **options)
            return answers

    plain = answers_of("plain", None)
    assert [answer.token_ids for answer in plain] == reference
    sharding = {
        "layers": layers,
        "verify": True,
        "report_dir": str(tmp_path / "reports"),
        **options,
    }
    sharded = answers_of("sharded", sharding)
    control = answers_of("control", {"layers": layers, "placement": "replicated", **options})
    check_identical(sharded, control)
    check_to_rounding(sharded, plain)
