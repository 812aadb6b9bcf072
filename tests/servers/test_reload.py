"""Other weights for a running server: every rank serves them, as the unsharded server does."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAIError

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


HANG_S = 60
CUT_SHORT = (
    "ReloadError: rank {rank}: no rank has reloaded its weights, and all go on with those that "
    "they have: rank 0: HostError: layer_sharding: "
)


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


@pytest.fixture(scope="module")
def other(dense, tmp_path_factory) -> Path:
    return with_other_weights(dense, tmp_path_factory.mktemp("other") / "other", CHANGED_DENSE)


def replicas(model: Path, log: Path) -> Server:
    return Server(
        model,
        log,
        sharding={"layers": REPLICATED},
        arguments=probe.ARGUMENTS,
        environment=probe.ENVIRONMENT,
    )


def refused(server: Server, said: str, method: str, *args: Any, **kwargs: str) -> None:
    """The front end answers with an error; the log says this of both ranks."""
    before = len(server.log_text())
    with pytest.raises(urllib.error.HTTPError) as error:
        server.post("/collective_rpc", {"method": method, "args": args, "kwargs": kwargs})
    with error.value:
        assert error.value.code == 500
    deadline = time.monotonic() + HANG_S  # it answers as soon as the first of them has failed
    while not all(said.format(rank=rank) in server.log_text()[before:] for rank in (0, 1)):
        assert time.monotonic() < deadline, server.log_text()[before:]
        time.sleep(0.1)


def half_way(server: Server, weights: Path) -> None:
    """Rank 1's checkpoint ends half-way."""
    refused(server, "the checkpoint ends here", "reload_half", str(weights), CHANGED_DENSE, 1)


@pytest.mark.timeout(900)
def test_a_reload_is_of_all_replicas_or_of_none(dense, other, tmp_path):
    """A file cut short changes nothing; after a failure half-way only a good reload answers."""
    prompts = questions(dense)
    cut = shutil.copytree(other, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:-1000])
    with Server(other, tmp_path / "started") as server:
        started = ask(server, prompts)
    with replicas(dense, tmp_path / "sharded") as server:
        before = [ask(server, prompts, rank=rank) for rank in (0, 1)]
        refused(server, CUT_SHORT, "reload_weights", weights_path=str(cut))
        assert [ask(server, prompts, rank=rank) for rank in (0, 1)] == before
        server.post("/pause", {})
        half_way(server, other)
        answers: dict[int, Any] = {}
        waiting = [
            threading.Thread(
                target=lambda rank=rank: answers.update({rank: ask(server, prompts, rank=rank)})
            )
            for rank in (0, 1)
        ]
        for thread in waiting:
            thread.start()
            thread.join(3)
        assert not answers, "nobody is answered by a mixture"
        server.post(
            "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(other)}}
        )
        assert not answers
        server.post("/resume", {})
        for thread in waiting:
            thread.join(60)
        for rank in (0, 1):
            check_identical(answers[rank], started)
    assert sum(a.token_ids != b.token_ids for a, b in zip(before[0], started, strict=True)) >= 4


@pytest.mark.timeout(900)
def test_a_request_after_a_reload_that_failed_ends_the_server_without_an_answer(
    dense, other, tmp_path
):
    prompts = questions(dense)
    with replicas(dense, tmp_path / "sharded") as server:
        half_way(server, other)
        for rank in (0, 1):
            with pytest.raises(OpenAIError):
                ask(server, prompts, rank=rank)
        server.wait_for_end(60)
        assert "TransportError: rank" in server.log_text()
        assert "failed half-way" in server.log_text()


def reload(
    server: Server, weights: Path, changed: tuple[str, ...] = CHANGED, tensors: int = TENSORS
) -> None:
    """On every rank, through vLLM's own reload of checkpoints."""
    body = {"method": "reload_some", "args": [str(weights), changed], "timeout": 100}
    assert server.post("/collective_rpc", body)["results"] == [str(tensors)]
