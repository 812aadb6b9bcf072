"""Forked: processes that begin with torch and vLLM imported, which takes ten seconds each time.

Where vLLM or torch is not installed they begin without; pytest is not needed either.

They are forked from one process that does nothing else: it has no threads, no plugin is loaded and
no process group formed in it. What must begin without vLLM is started another way.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from lifeline import end_with

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"])

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
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return CONTEXT.Process(target=_bound, args=(work, *args), daemon=daemon)


def _bound(work: Callable[..., Any], *args: Any) -> None:
    """It ends with the process that it is forked from, and that one with whoever has started both.

    For that nobody but the latter may hold the pipe by which the forking process waits for its end.
    """
    end_with(os.getppid())
    held = vars(forkserver._forkserver)
    if held["_forkserver_alive_fd"] is not None:
        os.close(held["_forkserver_alive_fd"])
        held["_forkserver_alive_fd"] = None
    work(*args)
