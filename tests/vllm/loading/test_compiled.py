"""A sharded model that vLLM compiles itself (VLLM_COMPILE), in pieces that it cuts at both ops.

On a CPU vLLM has torch compile whole models, so no server here is compiled so. Its backend, its
cuts and Inductor need no GPU: real models on real ranks go through them. Nothing is captured.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import fields
from inspect import getsource
from typing import Any

import pytest
import torch

from hosted.engines import load, run_engines
from recital import model_path

COUNTS = (6, 17, 1)
"""Tokens of the forwards: one compilation serves all."""

OPS = ["layershard::reach", "layershard::wait"]
SHARDED = ["o_proj", "mlp.down_proj", "shared_experts.down_proj"]


def name_what_is_looked_for() -> torch.library.Library:
    """One of vLLM's passes looks for ops of GPUs in every graph; here they are names of nothing."""
    from vllm.compilation.passes.utility import fix_functionalization

    library = torch.library.Library("_C", "FRAGMENT")
    looked_for = re.findall(r"torch\.ops\._C\.(\w+)", getsource(fix_functionalization))
    for name in sorted(set(looked_for)):
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}() -> ()")
    return library


@torch.inference_mode()
def forwards(rank: int, config: Any) -> dict[str, Any]:
    """What the model answers when it is not compiled, and then compiled; and what was compiled."""
    from vllm.compilation.counter import compilation_counter
    from vllm.config import CompilationMode, set_current_vllm_config
    from vllm.forward_context import set_forward_context

    from vllm_layershard.runtime.ops import bound_series

    # Nothing is taken from a former run, and nothing left for another.
    os.environ.update(VLLM_DISABLE_COMPILE_CACHE="1", VLLM_CACHE_ROOT=tempfile.mkdtemp())
    compilation = config.compilation_config
    compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "inductor"
    compilation.compile_sizes = []
    compilation.splitting_ops = [*compilation._attention_ops, *OPS]  # as on a GPU
    for each in fields(compilation.pass_config):
        if each.name.startswith("fuse_"):
            setattr(compilation.pass_config, each.name, False)  # the CPU has none of their kernels
    library = name_what_is_looked_for()
    inner = load(config, lambda model: None).model
    answers = []
    for compiled in (False, True):
        inner.do_not_compile = not compiled
        for count in COUNTS:
            for series in bound_series():
                series.slots.poison()
            given = (torch.arange(count), torch.arange(count), None)
            with set_current_vllm_config(config), set_forward_context(None, config, count):
                answers.append(inner(*given).float().tolist())
    del library
    return {
        "eager": answers[: len(COUNTS)],
        "compiled": answers[len(COUNTS) :],
        "moved": [series.counters.forwards for series in bound_series()],
        "compilations": compilation_counter.num_graphs_seen,
        "pieces": compilation_counter.num_piecewise_graphs_seen,
    }


def served(sharding: Any) -> list[dict[str, Any]]:
    found = run_engines(model_path(), sharding, forwards)
    for seen in found:
        assert not isinstance(seen, str), seen
    return found


@pytest.mark.matrix(part="compiled")
def test_it_answers_as_the_control_to_the_bit_and_as_without_a_compiler_to_rounding():
    control = served({"layers": SHARDED, "placement": "replicated"})
    for seen, same in zip(served(SHARDED), control, strict=True):
        assert seen["compilations"] == same["compilations"] == 1
        assert seen["pieces"] == same["pieces"] > 3 * len(OPS), "cut at ours"
        assert set(seen["moved"]) == {2 * len(COUNTS)}
        for way in ("eager", "compiled"):
            assert seen[way] == same[way]
        for eager, compiled in zip(seen["eager"], seen["compiled"], strict=True):
            torch.testing.assert_close(
                torch.tensor(compiled), torch.tensor(eager), rtol=0.05, atol=0.25
            )
