"""Part: one function of a module, with its cases; what is started and limited as a whole."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.cases import calls_of, gpus_of
from gpu.report import Reader


@dataclass(frozen=True, slots=True)
class Part:
    """`cases` says each call's arguments. No case may be silent for longer than `limit_s`."""

    module: str
    function: str
    gpus: int = 1
    cases: tuple[str, ...] = ("",)
    limit_s: float = 90.0

    @property
    def name(self) -> str:
        """As pytest calls it."""
        return f"{self.module}::{self.function}"


@dataclass(frozen=True, slots=True)
class Unread:
    """A module whose parts nobody knows, and why."""

    module: str
    why: str


def parts_of(modules: Iterable[str], prefix: str) -> list[Part | Unread]:
    """The functions of these modules whose names begin with `prefix`, in the order of the text."""
    found: list[Part | Unread] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            found.append(Unread(name, f"{type(error).__name__}: {error}"))
            continue
        own = [
            (key, value)
            for key, value in vars(module).items()
            if key.startswith(prefix) and value.__module__ == name
        ]
        found += [Part(name, key, gpus_of(value), _said(value)) for key, value in own]
    return found


def _said(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(
        ", ".join(f"{name}={value}" for name, value in call.items()) for call in calls_of(function)
    )


@dataclass(slots=True)
class Process:
    """A part's process, from case `first` on, in a session of its own: all it starts ends with it.

    It ends with the process that has started it. Its words on stdout and stderr go to a file.
    """

    part: Part
    first: int
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    _process: subprocess.Popen[bytes] = field(init=False)
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        rows = Path(self.folder.name, "rows.jsonl")
        self.reader = Reader(rows)
        with Path(self.folder.name, "said").open("wb") as said:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gpu.child", str(os.getpid())),
                    *(self.part.module, self.part.function, str(self.first), str(rows)),
                ],
                stdout=said,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether the process itself has ended; its rows may still have to be read."""
        return self._process.poll() is not None

    def end(self) -> tuple[int, str]:
        """End what is left of it. Its exit status (minus a signal), and its last words."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        said = Path(self.folder.name, "said").read_text(errors="replace").strip()
        self.folder.cleanup()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        return status, f"{how}; last words: {said[-1500:] or 'none'}"
