"""Output: where a run's rows go, and its words for people. None is lost for another's sake."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


class Output:
    """Rows go to the file first, if there is one, and then to stdout; words go to stderr.

    What can no longer be written to is left out from then on. `lost` says so of what was to keep
    the rows: the file, or stdout where there is none.
    """

    def __init__(self, file: Path | None) -> None:
        self.lost = False
        self._file: TextIO | None = None if file is None else file.open("w")
        self._name = str(file)
        self._stdout: TextIO | None = sys.stdout
        self._keeps = file is not None

    def close(self) -> None:
        """No more rows come."""
        if self._file is not None:
            with suppress(OSError):  # a full disk: each row was written, or its loss was told
                self._file.close()

    def first(self, row: dict[str, Any]) -> None:
        """The first row.

        Raises:
            OSError: the file does not take it.
        """
        if self._file is not None:
            _put(self._file, row)
        self._to_stdout(row)

    def row(self, row: dict[str, Any]) -> None:
        """One more, written at once."""
        if self._file is not None:
            try:
                _put(self._file, row)
            except OSError as error:
                self._file, self.lost = None, True
                self.say(f"{self._name} has no more rows: {error.strerror}")
        self._to_stdout(row)

    def _to_stdout(self, row: dict[str, Any]) -> None:
        if self._stdout is None:
            return
        try:
            _put(self._stdout, row)
        except OSError as error:
            self._stdout, self.lost = None, self.lost or not self._keeps
            self.say(f"stdout has no more rows: {error.strerror}")
            with suppress(OSError, ValueError):  # what it still holds would fail once more at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def say(self, words: str) -> None:
        """A line for people; nobody may be there to read it."""
        with suppress(OSError):
            print(f"gpu: {words}", file=sys.stderr, flush=True)


def _put(stream: TextIO, row: dict[str, Any]) -> None:
    print(json.dumps(row, default=str), file=stream, flush=True)
