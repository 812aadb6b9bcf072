"""Output: the one way to stdout. A reader that closes the pipe early is no error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

import typer


def emit(text: str) -> None:
    """Write one piece of data and a newline to stdout."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()


def emit_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout."""
    emit(json.dumps(document, indent=2))


def leave_closed_pipe() -> NoReturn:
    """End quietly: nobody reads on."""
    discard_stdout()
    raise typer.Exit(0)


def discard_stdout() -> None:
    """Send the rest to nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
