"""What vLLM, with the plugin, answers to engine arguments before any worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hosted.child import run_child

ASKED = """
import json, os, sys
from vllm.engine.arg_utils import EngineArgs

result = []
for environment, arguments in json.loads(sys.argv[1]):
    os.environ.update(environment)
    try:
        EngineArgs(**arguments).create_engine_config()
        result.append("accepted")
    except Exception as error:
        result.append(f"{type(error).__name__}: {error}")
    for name in environment:
        del os.environ[name]
"""

Case = tuple[dict[str, str], dict[str, Any]]
"""Environment variables, and engine arguments."""


def answers(model: Path, cases: list[Case], data_parallel_size: int) -> list[str]:
    """The answer to each case, in one process: "accepted", or the error with its class."""
    common = {
        "model": str(model),
        "data_parallel_size": data_parallel_size,
        "skip_tokenizer_init": True,
    }
    found: list[str] = run_child(ASKED, json.dumps([(env, common | own) for env, own in cases]))
    return found
