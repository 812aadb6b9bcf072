"""Breakable graphs: vLLM ends a captured graph before an op that runs eagerly, and begins another.

On CUDA it does so for DeepSeek-V3.2, GLM-5, Kimi-K3 and others, in the place of pieces that a
compiler cuts. A movement that is started in one graph would be waited for in another. So graphs end
at both ops, too: what they start and wait for is outside all of them. They end at a linear whose
tokens may move, too, whose result comes to where the next graph reads it. In a graph of a whole
forward vLLM's decorator breaks nothing, and the ops are captured. Source: vLLM 0.32,
config/vllm.py, compilation/breakable_cudagraph.py.
"""

from __future__ import annotations

from vllm_layershard.hosts.names import BREAK_DURING_CAPTURE
from vllm_layershard.runtime.moves.ops import run_linears_within
from vllm_layershard.runtime.ops import run_within


def end_graphs_at_movements() -> None:
    """Have both ops end a breakable graph. Without effect where this process breaks none.

    vLLM's decorator asks once, when it decorates: the configuration has been validated by then.

    Raises:
        HostError: this version of vLLM has no such decorator.
    """
    eager_break = BREAK_DURING_CAPTURE.imported()
    run_within(eager_break)
    run_linears_within(eager_break)
