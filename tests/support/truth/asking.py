"""Asks vLLM's own classes, in a process without the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STAND_INS = Path(__file__).parent / "stand_ins"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_PLUGINS": "",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONPATH": os.pathsep.join(
        [str(STAND_INS), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ),
}


def answers_of(script: str | Path, asked: Any, timeout_s: int = 300) -> Any:
    """What a script, its text or its file, prints last: JSON, like what it is given as input."""
    how = [str(script)] if isinstance(script, Path) else ["-c", script]
    result = subprocess.run(
        [sys.executable, *how],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])
