"""Other weights for a running server: every rank serves them, as the unsharded server does."""

from __future__ import annotations

from pathlib import Path

import pytest

from recital import model_path
from serving import probe
from serving.answers import ask, check_identical
from serving.questions import questions
from serving.reports import check_reports
from serving.server import Server
from serving.weights import with_other_weights

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="modes")]

LAYERS = ["o_proj", "q_b_proj", "fused_qkv_a_proj"]
CHANGED = (
    "self_attn.o_proj",
    "self_attn.q_b_proj",
    "self_attn.q_a_proj",
    "self_attn.kv_a_proj_with_mqa",
    "shared_experts.down_proj",
)
"""Not the routed experts: reloading those, even the same, breaks vLLM 0.32's CPU server itself."""

TENSORS = 4 * 9 + 5


@pytest.mark.timeout(900)
def test_reload_weights(model, prompts, reference, tmp_path):
    other = with_other_weights(model, tmp_path / "other", CHANGED)
    sharding = {"layers": LAYERS, "verify": True, "report_dir": str(tmp_path / "reports")}
    answers = {}
    for case, asked in (("plain", None), ("sharded", sharding)):
        with Server(
            model,
            tmp_path / case,
            sharding=asked,
            arguments=probe.ARGUMENTS,
            environment=probe.ENVIRONMENT,
        ) as server:
            before = ask(server, prompts)
            reload(server, other)
            after = ask(server, prompts)
            if asked is not None:
                check_reports(tmp_path / "reports", model, LAYERS)
            reload(server, model)
            answers[case] = (before, after, ask(server, prompts))
    for old, new, again in answers.values():
        assert [answer.token_ids for answer in old] == reference
        assert sum(a.token_ids != b.token_ids for a, b in zip(old, new, strict=True)) >= 4
        assert again == old
    with Server(other, tmp_path / "started") as server:
        started = ask(server, prompts)
    assert answers["plain"][1] == started, "vLLM's own reload"
    check_identical(answers["sharded"][1], started)


REPLICATED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CHANGED_DENSE = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
TENSORS_DENSE = 5 * 7


@pytest.mark.timeout(900)
def test_reload_weights_of_replicas(tmp_path):
    """Each replica renews its own layers, and reads the other's new ones from then on."""
    dense = model_path("dense")
    prompts = questions(dense)
    other = with_other_weights(dense, tmp_path / "other", CHANGED_DENSE)
    with Server(other, tmp_path / "started") as server:
        started = [ask(server, prompts, rank=rank) for rank in (0, 1)]
    with Server(
        dense,
        tmp_path / "sharded",
        sharding={"layers": REPLICATED, "verify": True},
        arguments=probe.ARGUMENTS,
        environment=probe.ENVIRONMENT,
    ) as server:
        before = [ask(server, prompts, rank=rank) for rank in (0, 1)]
        for weights, expected in ((other, started), (dense, before)):
            reload(server, weights, CHANGED_DENSE, TENSORS_DENSE)
            for rank in (0, 1):
                check_identical(ask(server, prompts, rank=rank), expected[rank])
    assert sum(a.token_ids != b.token_ids for a, b in zip(*before, strict=True)) == 0
    assert sum(a.token_ids != b.token_ids for a, b in zip(before[0], started[0], strict=True)) >= 4


def reload(
    server: Server, weights: Path, changed: tuple[str, ...] = CHANGED, tensors: int = TENSORS
) -> None:
    """On every rank, through vLLM's own reload of checkpoints."""
    body = {"method": "reload_some", "args": [str(weights), changed], "timeout": 100}
    assert server.post("/collective_rpc", body)["results"] == [str(tensors)]
