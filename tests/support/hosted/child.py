"""Run a piece of Python in a process with vLLM where no plugin has been loaded yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from forked import CONTEXT, forked

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
HANG_S = 180
SUPPORT = Path(__file__).parents[1]


def run_child(code: str, *arguments: str, **environment: str) -> Any:
    """What the code assigns to `result`, through JSON. vLLM has been imported, and no more."""
    found, finds = CONTEXT.Pipe(duplex=False)
    process = forked(_run, finds, code, arguments, ENVIRONMENT | environment, daemon=True)
    process.start()
    finds.close()
    try:
        assert found.poll(HANG_S), "it does not end"
        result, error = found.recv()
    finally:
        process.kill()
        process.join()
    assert error is None, error
    return json.loads(result)


def _run(finds: Any, code: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(code, names)
        finds.send((json.dumps(names["result"]), None))
    except BaseException:
        finds.send((None, traceback.format_exc()))


def run_fresh(code: str, *arguments: str, **environment: str) -> Any:
    """The same in an interpreter of its own, which imports vLLM anew: ten seconds.

    It finds the modules of tests/support, as the tests themselves do.
    """
    paths = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport json\nprint('\\n' + json.dumps(result))",
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])
