"""Forked: processes that begin with torch and vLLM imported, which takes ten seconds each time.

They are forked from one process that does nothing else: it has no threads, no plugin is loaded and
no process group formed in it. What must begin without vLLM is started another way.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"])
