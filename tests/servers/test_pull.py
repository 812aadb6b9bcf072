"""Pulls among ranks in lockstep: a model with experts says what it says with broadcasts."""

from __future__ import annotations

import pytest

from serving.answers import ask, check_identical
from serving.reports import check_reports
from serving.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="exchange")]

LAYERS = ["o_proj", "q_b_proj", "shared_experts.down_proj"]
MOVEMENTS = {
    "pull": {"transport": "pull"},
    "striped": {"placement": "striped"},
}


@pytest.mark.parametrize("name", MOVEMENTS)
@pytest.mark.timeout(900)
def test_eager_pulls_say_what_the_unsharded_server_says(
    name, model, prompts, plain_eager, tmp_path
):
    sharding = {"layers": LAYERS, "verify": True, "report_dir": str(tmp_path / "reports")}
    with Server(model, tmp_path / "log", sharding=sharding | MOVEMENTS[name]) as server:
        check_identical(ask(server, prompts), plain_eager)
        placement = MOVEMENTS[name].get("placement", "round_robin")
        check_reports(tmp_path / "reports", model, LAYERS, placement=placement)


@pytest.mark.timeout(1500)
def test_compiled_pulls_say_what_broadcasts_say(model, prompts, reference, tmp_path):
    answers = {}
    for name, options in {"broadcast": {}, **MOVEMENTS}.items():
        sharding = {"layers": LAYERS, "verify": True, **options}
        with Server(model, tmp_path / name, eager=False, sharding=sharding) as server:
            answers[name] = ask(server, prompts)
    assert [answer.token_ids for answer in answers["broadcast"]] == reference
    for name in MOVEMENTS:
        check_identical(answers[name], answers["broadcast"])
