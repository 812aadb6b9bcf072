"""Compiled servers: equal to the replicated control to the bit, to the plain server to rounding.

The plain servers run under `make test-matrix`.

What rounding means is written in docs/adr/0005-to-rounding.md.
"""

from __future__ import annotations

import pytest

from serving.answers import ROUNDING, ask, check_identical, check_to_rounding, compare
from serving.server import Server

pytestmark = pytest.mark.serve

LAYERS = ["o_proj", "q_b_proj", "shared_experts.down_proj"]
FLOAT32 = ("--dtype", "float32")


def answers_of(model, prompts, log, sharding, arguments=()):
    with Server(model, log, eager=False, sharding=sharding, arguments=arguments) as server:
        return ask(server, prompts)


@pytest.fixture(scope="module")
def sharded(model, prompts, tmp_path_factory):
    log = tmp_path_factory.mktemp("sharded") / "log"
    return answers_of(model, prompts, log, {"layers": LAYERS, "verify": True})


@pytest.mark.timeout(1000)
def test_identical_to_the_control(model, prompts, reference, sharded, tmp_path):
    replicated = {"layers": LAYERS, "placement": "replicated"}
    check_identical(sharded, answers_of(model, prompts, tmp_path / "log", replicated))
    assert [answer.token_ids for answer in sharded] == reference


@pytest.mark.matrix(part="compiled")
@pytest.mark.timeout(1000)
def test_identical_to_the_control_with_the_first_layer_kept(model, prompts, reference, tmp_path):
    asked = {"layers": LAYERS, "keep_first": True}
    sharded = answers_of(model, prompts, tmp_path / "sharded", asked | {"verify": True})
    control = answers_of(model, prompts, tmp_path / "log", asked | {"placement": "replicated"})
    check_identical(sharded, control)
    assert [answer.token_ids for answer in sharded] == reference


@pytest.mark.matrix(part="compiled")
@pytest.mark.timeout(1000)
def test_the_plain_server_says_the_same(model, prompts, reference, sharded, tmp_path):
    plain = answers_of(model, prompts, tmp_path / "log", None)
    assert [answer.token_ids for answer in plain] == reference
    check_to_rounding(sharded, plain)


@pytest.mark.matrix(part="compiled")
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
