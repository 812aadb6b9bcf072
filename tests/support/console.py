"""The planner's console script, run within the process of the test."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import pytest

from layershard_cli import main


class Ended(NamedTuple):
    """Exit code, and all that was printed."""

    code: int
    stdout: str
    stderr: str


def layershard(*arguments: str, **environment: str) -> Ended:
    """Run `layershard` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["layershard", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main.run()
    code = end.value.code or 0
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def said(*arguments: str, **environment: str) -> str:
    """What a command prints that ends well."""
    ended = layershard(*arguments, **environment)
    assert ended.code == 0, ended
    return ended.stdout


def document(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    found: dict[str, Any] = json.loads(said(*arguments, "--json"))
    return found


def complaint(*arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that ends badly: it prints nothing else."""
    ended = layershard(*arguments)
    assert ended.code != 0
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.code, ended.stderr.strip()
