"""Report: a file of JSON lines that several processes append to, and one reads as it grows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """Call it with a row: one line, written at once. It may be sent to other processes."""

    file: Path

    def __call__(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, default=str) + "\n").encode()
        fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


class Rows(Report):
    """What a part measures or wants to be known, beside whether it passed."""

    def __call__(self, row: dict[str, Any]) -> None:
        super().__call__({"row": row})


class Reader:
    """What has been appended to a report since the last look."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def rows(self) -> list[dict[str, Any]]:
        """The new whole lines."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]
