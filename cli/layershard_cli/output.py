"""The one way to stdout and stderr. A reader that closes the pipe early changes no exit code.

Nothing that a terminal would act on gets through, whoever wrote it: a user, a file, a server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from vllm_layershard.errors import named_tokens, without_secrets

_LONGEST = 4000


def emit(text: str) -> None:
    """Write one line of data to stdout, or to nowhere once nobody reads on."""
    emit_escaped(printable(text))


def emit_escaped(text: str) -> None:
    """Write lines of which every part that is not ours was escaped before."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)


def tell(text: str) -> None:
    """Write a message to stderr. Where that cannot be written, the exit code says what matters."""
    _tell_escaped(printable(text))


def _tell_escaped(text: str, end: str = "\n") -> None:
    if sys.stderr is None:
        return
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def emit_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout, in ASCII, and its texts without secrets, as in messages."""
    emit_escaped(json.dumps(_public(document, named_tokens()), indent=2, allow_nan=False))


def _public(value: Any, tokens: Mapping[str, str]) -> Any:
    """The same, with every text without secrets."""
    if isinstance(value, str):
        return without_secrets(value, tokens)
    if isinstance(value, dict):
        return {without_secrets(key, tokens): _public(item, tokens) for key, item in value.items()}
    return [_public(item, tokens) for item in value] if isinstance(value, (list, tuple)) else value


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would act on rather than show.

    Without the secrets of a URL or a name, too, which a message may quote.
    """
    text = without_secrets(text)
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
    tell(f"layershard: {said}")


def note(message: str) -> None:
    """One line on stderr that says what a user should know."""
    tell(f"note: {message}")


def show_progress(done: int, total: int) -> None:
    """One line on stderr that counts; only the last count where nobody watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        end = "\n" if done == total else ""
        _tell_escaped(f"\rlayershard: headers read: {done} of {total} files", end)
    elif done == total:
        tell(f"layershard: headers read: {done} of {total} files")


def discard(stream: TextIO) -> None:
    """Send the rest to nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
