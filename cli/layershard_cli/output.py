"""The one way to stdout. A reader that closes the pipe early is no error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

import typer

_LONGEST = 4000


def emit(text: str) -> None:
    """Write one piece of data and a newline to stdout."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()


def emit_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout."""
    emit(json.dumps(document, indent=2, allow_nan=False))


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would act on rather than show."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def complain(message: str) -> None:
    """One line on stderr that says what went wrong; what it quotes may be of any length."""
    said = printable(message)
    if len(said) > _LONGEST:
        said = f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 2 :]}"
    print(f"layershard: {said}", file=sys.stderr)


def note(message: str) -> None:
    """One line on stderr that says what a user should know."""
    print(f"note: {printable(message)}", file=sys.stderr)


def show_progress(done: int, total: int) -> None:
    """One line on stderr that counts; only the last count where nobody watches."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rlayershard: headers read: {done} of {total} files", end=end, file=sys.stderr)
    elif done == total:
        print(f"layershard: headers read: {done} of {total} files", file=sys.stderr)


def leave_closed_pipe() -> NoReturn:
    """End quietly: nobody reads on."""
    discard_stdout()
    raise typer.Exit(0)


def discard_stdout() -> None:
    """Send the rest to nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
