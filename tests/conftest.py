"""For every test: no model is found in the cache of whoever runs it."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("truth.compare", "serving.answers", "serving.reports")


@pytest.fixture(scope="session", autouse=True)
def an_empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("no-cache")))
        yield
