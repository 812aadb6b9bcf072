"""Other weights for a running server: every rank serves them, as the unsharded server does."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers import probe
from servers.answers import ask, check_identical
from servers.reports import check_reports
from servers.server import Server
from servers.weights import with_other_weights

pytestmark = [pytest.mark.serve, pytest.mark.matrix]

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


def reload(server: Server, weights: Path) -> None:
    """On every rank, through vLLM's own reload of checkpoints."""
    body = {"method": "reload_some", "args": [str(weights), CHANGED], "timeout": 100}
    assert server.post("/collective_rpc", body)["results"] == [str(TENSORS)]
