"""One trained model and one set of questions for all servers; each server is started once."""

from __future__ import annotations

from pathlib import Path

import pytest

from recital import model_path
from serving.answers import Answer, ask, transformers_says
from serving.questions import questions
from serving.server import Server
from serving.weights import with_experts

NEARLY = '{"layer_shardings": ["o_proj"]}'
"""What the plain server is given instead of the key: a letter too many."""


@pytest.fixture(scope="session")
def model() -> Path:
    return model_path()


@pytest.fixture(scope="session")
def grouped(tmp_path_factory) -> Path:
    """A Qwen3 with experts, for prefix caching and chunked prefill.

    With MLA vLLM 0.32 turns both off on a CPU without AMX (platforms/cpu.py).
    """
    return with_experts(model_path("dense"), tmp_path_factory.mktemp("grouped") / "model")


@pytest.fixture(scope="session")
def prompts(model) -> list[list[int]]:
    return questions(model)


@pytest.fixture(scope="session")
def reference(model, prompts) -> list[tuple[int, ...]]:
    """What transformers says: the baseline of the baseline."""
    return transformers_says(model, prompts)


@pytest.fixture(scope="session")
def unsharded(model, prompts, tmp_path_factory) -> tuple[list[Answer], list[Answer], str]:
    """A server whose key is one letter off, so that nothing is sharded.

    Its answers, those to the same questions in other batches (of one rank alone), its log.
    """
    log = tmp_path_factory.mktemp("plain") / "log"
    with Server(model, log, arguments=("--additional-config", NEARLY)) as server:
        answers = ask(server, prompts)
        return answers, ask(server, prompts, rank=0), server.log_text()


@pytest.fixture(scope="session")
def plain(unsharded) -> tuple[list[Answer], str]:
    return unsharded[0], unsharded[2]


@pytest.fixture(scope="session")
def plain_eager(plain) -> list[Answer]:
    return plain[0]


@pytest.fixture(scope="session")
def rebatched(unsharded) -> list[Answer]:
    return unsharded[1]
