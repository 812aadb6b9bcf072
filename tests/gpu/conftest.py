"""The functions here are written without pytest, which may be missing beside a GPU: see gpu/."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu.cases import axes_of, gpus_of, lacking
from gpu.report import Report

HERE = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for names, values in reversed(axes_of(metafunc.function)):
        metafunc.parametrize(names, values)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item in items:
        if isinstance(item, pytest.Function) and HERE in item.path.parents:
            why = lacking(gpus_of(item.function), present)
            if why is not None:
                # Nothing stands in for a GPU here: what needs one is not run, and says so.
                item.add_marker(pytest.mark.skip(reason=why))
            # What a torch of another release warns of is no failure here.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """What the runner writes into its rows is a warning of pytest's."""

    def write(row: dict[str, Any]) -> None:
        Report(tmp_path / "rows.jsonl")(row)
        warnings.warn(str(row), stacklevel=2)

    return write
