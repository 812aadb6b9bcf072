"""Run a piece of Python in a fresh process, where no plugin has been loaded yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def run_child(code: str, *arguments: str, **environment: str) -> Any:
    """What the code assigns to `result`, through JSON."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport json\nprint('\\n' + json.dumps(result))",
            *arguments,
        ],
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])
