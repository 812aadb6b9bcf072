"""One trained model and one set of questions for all servers; each server is started once."""

from __future__ import annotations

from pathlib import Path

import pytest

from recital import model_path
from serving.answers import Answer, ask, transformers_says
from serving.questions import questions
from serving.server import Server


@pytest.fixture(scope="session")
def model() -> Path:
    return model_path()


@pytest.fixture(scope="session")
def prompts(model) -> list[list[int]]:
    return questions(model)


@pytest.fixture(scope="session")
def reference(model, prompts) -> list[tuple[int, ...]]:
    """What transformers says: the baseline of the baseline."""
    return transformers_says(model, prompts)


@pytest.fixture(scope="session")
def plain_eager(model, prompts, tmp_path_factory) -> list[Answer]:
    with Server(model, tmp_path_factory.mktemp("plain") / "log") as server:
        return ask(server, prompts)
