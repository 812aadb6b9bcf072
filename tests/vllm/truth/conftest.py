"""The truth of a file's cases, asked of vLLM once."""

from __future__ import annotations

import pytest

from truth.compare import Truth


@pytest.fixture(scope="module")
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """All `CASES` of the test's file, built by vLLM's own classes."""
    return Truth(request.module.CASES, tmp_path_factory.mktemp("models"))
