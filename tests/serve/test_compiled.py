"""Compiled servers: equal to the replicated control to the bit, to the plain server to rounding.

What rounding means is written in docs/adr/0005-to-rounding.md.
"""

from __future__ import annotations

import pytest

from servers.answers import ROUNDING, ask, check_identical, check_to_rounding, compare
from servers.server import Server

pytestmark = pytest.mark.serve

LAYERS = ["o_proj", "q_b_proj", "shared_experts.down_proj"]
FLOAT32 = ("--dtype", "float32")


def answers_of(model, prompts, log, sharding, arguments=()):
    with Server(model, log, eager=False, sharding=sharding, arguments=arguments) as server:
        return ask(server, prompts)


@pytest.mark.timeout(1500)
def test_compiled_answers(model, prompts, reference, tmp_path):
    plain = answers_of(model, prompts, tmp_path / "plain", None)
    assert [answer.token_ids for answer in plain] == reference

    sharded = answers_of(model, prompts, tmp_path / "sharded", {"layers": LAYERS, "verify": True})
    control = answers_of(
        model, prompts, tmp_path / "control", {"layers": LAYERS, "placement": "replicated"}
    )
    check_identical(sharded, control)
    check_to_rounding(sharded, plain)


@pytest.mark.matrix
@pytest.mark.timeout(1000)
def test_every_logprob_where_rounding_is_small(model, prompts, tmp_path):
    """In float32 the bound holds for all that the servers return: what is left is rounding."""
    plain = answers_of(model, prompts, tmp_path / "plain", None, FLOAT32)
    sharded = answers_of(model, prompts, tmp_path / "sharded", {"layers": LAYERS}, FLOAT32)
    difference = compare(sharded, plain)
    assert difference.same_tokens == difference.of == 32
    assert difference.largest_logprob_gap <= ROUNDING
    assert difference.largest_rival_gap <= ROUNDING
    print(f"compiled in float32, sharded against plain: {difference}")
