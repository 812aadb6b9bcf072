"""The baseline: one rank of vLLM alone, with no plugin loaded, says what transformers says.

Everything else compares servers with servers; this compares one with another implementation, with
neither sharding nor data parallelism (nor their patches) in between.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from recital import model_path
from servers.answers import ask, transformers_says
from servers.questions import questions
from servers.server import Server

pytestmark = pytest.mark.serve

NO_PLUGINS = {"VLLM_PLUGINS": ""}


@pytest.fixture(scope="module")
def model() -> Path:
    return model_path()


@pytest.fixture(scope="module")
def prompts(model) -> list[list[int]]:
    return questions(model)


@pytest.fixture(scope="module")
def reference(model, prompts) -> list[tuple[int, ...]]:
    return transformers_says(model, prompts)


def test_one_rank_says_what_transformers_says(model, prompts, reference, tmp_path):
    with Server(model, tmp_path / "log", ranks=1, environment=NO_PLUGINS) as server:
        answers = ask(server, prompts)
    assert [answer.token_ids for answer in answers] == reference
