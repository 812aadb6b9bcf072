"""Compiled servers: equal to the replicated control to the bit, to the plain server to rounding."""

from __future__ import annotations

import pytest

from servers.answers import ask, compare
from servers.server import Server

pytestmark = pytest.mark.serve

LAYERS = ["o_proj", "q_b_proj", "shared_experts.down_proj"]
ROUNDING = 0.05


def answers_of(model, prompts, log, sharding):
    with Server(model, log, eager=False, sharding=sharding) as server:
        return ask(server, prompts)


@pytest.mark.timeout(1500)
def test_compiled_answers(model, prompts, reference, tmp_path):
    plain = answers_of(model, prompts, tmp_path / "plain", None)
    assert [answer.token_ids for answer in plain] == reference

    sharded = answers_of(model, prompts, tmp_path / "sharded", {"layers": LAYERS, "verify": True})
    control = answers_of(
        model, prompts, tmp_path / "control", {"layers": LAYERS, "placement": "replicated"}
    )
    against_control = compare(sharded, control)
    assert against_control.same_tokens == against_control.of == 32
    assert against_control.identical_logprobs

    against_plain = compare(sharded, plain)
    assert against_plain.same_tokens == against_plain.of == 32
    assert against_plain.largest_logprob_gap <= ROUNDING
    assert against_plain.largest_rival_probability_gap <= ROUNDING
    print(f"compiled, sharded against plain: {against_plain}")
