"""For every test: no model of whoever runs it is found, and no machine is too slow."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from parts import PartError, part_of

pytest.register_assert_rewrite("truth.compare", "serving.answers", "serving.reports")

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before any is left out: each belongs to the main run or to one part of the matrix."""
    for item in items:
        try:
            part_of(list(item.iter_markers("matrix")))
        except PartError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from error


@pytest.fixture(scope="session", autouse=True)
def a_bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("no-cache")))
        patch.delenv("COLUMNS", raising=False)  # pytest's workers set it, as a terminal may
        yield
