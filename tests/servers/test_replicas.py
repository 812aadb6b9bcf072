"""Data-parallel replicas of a dense model: engines that never wait for each other, and share.

Whatever the load does to them, they say what the unsharded server says, to the bit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from operator import eq
from pathlib import Path

import pytest

from recital import model_path
from serving.answers import Answer, ask, check_identical, transformers_says
from serving.cache import check_cache
from serving.layout import TWO_RANKS, Layout
from serving.quantised import PLUGINS, quantised
from serving.questions import questions
from serving.reports import check_reports
from serving.server import Server

pytestmark = pytest.mark.serve

LAYERS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


@pytest.fixture(scope="module")
def asked(dense) -> list[list[int]]:
    return questions(dense)


def loads(server: Server, prompts: list[list[int]]) -> list[list[Answer]]:
    """All to one replica, to the other, in turn, and in bursts: sixteen here while one is there."""
    answers = [ask(server, prompts, rank=0), ask(server, prompts, rank=1), ask(server, prompts)]
    with ThreadPoolExecutor() as pool:
        for burst in (0, 1):
            many = pool.submit(ask, server, prompts[:16], rank=burst)
            few = pool.submit(ask, server, prompts[16:20], rank=1 - burst)
            answers += [many.result(), few.result()]
    return answers


@pytest.fixture(scope="module")
def plain(dense, asked, tmp_path_factory) -> list[list[Answer]]:
    with Server(dense, tmp_path_factory.mktemp("plain") / "log") as server:
        return loads(server, asked)


def asking(directory: Path, **options) -> dict:
    return {
        "layers": LAYERS,
        "verify": True,
        "report_dir": str(directory / "reports"),
        **options,
    }


def test_replicas_that_drift_say_what_the_unsharded_server_says(dense, asked, plain, tmp_path):
    assert [answer.token_ids for answer in plain[0]] == transformers_says(dense, asked)
    with Server(dense, tmp_path / "log", sharding=asking(tmp_path)) as server:
        for sharded, expected in zip(loads(server, asked), plain, strict=True):
            check_identical(sharded, expected)
        check_reports(tmp_path / "reports", dense, LAYERS)
        check_cache(server.log_text(), dense, TWO_RANKS)


@pytest.mark.matrix(part="replicas")
@pytest.mark.timeout(900)
def test_scales_that_come_from_the_weight(dense, asked, tmp_path):
    """fp8 in blocks, requantised by vLLM's own function as for DeepGEMM, on either replica."""
    checkpoint = quantised(dense, tmp_path / "model", "fp8-blocks")
    path = {"PYTHONPATH": f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    answers = {}
    for case, sharding in (("plain", None), ("sharded", asking(tmp_path))):
        with Server(checkpoint, tmp_path / case, sharding=sharding, environment=path) as server:
            answers[case] = [ask(server, asked, rank=rank) for rank in (0, 1)]
            assert "Selected RequantisedFp8Kernel" in server.log_text()
            if sharding is not None:
                check_reports(tmp_path / "reports", checkpoint, LAYERS)
    said = [answer.token_ids for answer in answers["plain"][0]]
    same = sum(map(eq, said, transformers_says(dense, asked)))
    assert same >= len(asked) // 2, "the checkpoint is quantised wrongly: it no longer recites"
    for sharded, expected in zip(answers["sharded"], answers["plain"], strict=True):
        check_identical(sharded, expected)


@pytest.mark.matrix(part="replicas")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"placement": "striped"}, id="striped"),
        pytest.param({"placement": "striped", "slice_bytes": 10_000}, id="sliced"),
        pytest.param({"prefetch_step": 3}, id="step 3"),
        pytest.param({"prefetch_step": 0}, id="step 0"),
        pytest.param({"placement": "striped", "keep_first": True}, id="first layer kept"),
    ],
)
def test_other_placements_and_steps(dense, asked, plain, tmp_path, options):
    with Server(dense, tmp_path / "log", sharding=asking(tmp_path, **options)) as server:
        for sharded, expected in zip(loads(server, asked), plain, strict=True):
            check_identical(sharded, expected)
        planned = {key: value for key, value in options.items() if key != "slice_bytes"}
        check_reports(tmp_path / "reports", dense, LAYERS, **planned)


@pytest.mark.matrix(part="compiled")
@pytest.mark.timeout(1500)
def test_compiled_replicas_equal_the_control(dense, asked, tmp_path):
    answers = {}
    for placement in ("round_robin", "striped", "replicated"):
        sharding = {"layers": LAYERS, "placement": placement}
        log = tmp_path / placement
        with Server(dense, log, eager=False, sharding=sharding) as server:
            answers[placement] = ask(server, asked), ask(server, asked, rank=1)
    for placement in ("round_robin", "striped"):
        for sharded, control in zip(answers[placement], answers["replicated"], strict=True):
            check_identical(sharded, control)


@pytest.mark.matrix(part="replicas")
@pytest.mark.timeout(900)
def test_replicas_launched_apart_meet_on_one_node(dense, asked, plain, tmp_path):
    layout = Layout(dp=2, nodes=2)
    with Server(dense, tmp_path / "log", layout=layout, sharding=asking(tmp_path)) as server:
        for sharded, expected in zip(loads(server, asked), plain, strict=True):
            check_identical(sharded, expected)
        check_reports(tmp_path / "reports", dense, LAYERS, layout=layout)


@pytest.mark.matrix(part="replicas")
@pytest.mark.timeout(900)
def test_replicas_of_two_ranks_share_rank_by_rank(dense, asked, tmp_path):
    """Split by tensor parallelism, a linear has its copy on the other replica's same rank."""
    layout, answers = Layout(dp=2, tp=2), {}
    for case, sharding in (("plain", None), ("sharded", asking(tmp_path))):
        with Server(dense, tmp_path / case, layout=layout, sharding=sharding) as server:
            answers[case] = ask(server, asked), ask(server, asked, rank=1)
            if sharding is not None:
                check_reports(tmp_path / "reports", dense, LAYERS, layout=layout)
    for sharded, expected in zip(answers["sharded"], answers["plain"], strict=True):
        check_identical(sharded, expected)
