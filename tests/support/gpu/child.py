"""Child: the process of one part. It calls the function, case after case, and reports each.

It ends after the first case that fails, since what a CUDA error leaves behind must not fail the
others; and after any case that is to be apart. Whoever started it starts another for the rest.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from forked import CONTEXT
from gpu.cases import calls_of, is_apart
from gpu.report import Report, Rows
from lifeline import end_with


def run(module: str, function: str, first: int, file: Path) -> int:
    """The exit status: 1 if a case failed."""
    CONTEXT.set_forkserver_preload(["torch", "torch.distributed"])
    called = getattr(importlib.import_module(module), function)
    report = Report(file)
    for index, arguments in enumerate(calls_of(called)):
        if index < first:
            continue
        report({"began": index})
        try:
            with tempfile.TemporaryDirectory() as folder:
                called(**arguments, **_offered(called, Path(folder), Rows(file)))
        except Exception as error:
            why = "".join(traceback.format_exception(error))
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            report({"ended": index, "failed": said, "trace": why})
            return 1
        report({"ended": index})
        if is_apart(called):
            break
    return 0


def _offered(function: Any, folder: Path, rows: Rows) -> dict[str, Any]:
    offers: dict[str, Any] = {"tmp_path": folder, "rows": rows}
    wanted = inspect.signature(function).parameters
    return {name: offer for name, offer in offers.items() if name in wanted}


if __name__ == "__main__":
    _, parent, module, function, first, file = sys.argv
    end_with(int(parent))
    sys.exit(run(module, function, int(first), Path(file)))
