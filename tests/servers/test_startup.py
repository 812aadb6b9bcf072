"""The planner's cache bytes are those of the line that vLLM logs when it starts.

Every family that the CPU backend can run, with empty weights of small sizes. Not gpt-oss and the
hybrids: of layers with windows or states, vLLM's line depends on the longest sequence that it is
told of. The other line, "Model loading took", is printed by vLLM's GPU runners only; its bytes are
held by the truth tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from serving.server import ENVIRONMENT
from tests.vllm.truth.test_truth_grouped import CASES as GROUPED
from tests.vllm.truth.test_truth_hybrids import CASES as HYBRIDS
from tests.vllm.truth.test_truth_mla import CASES as MLA
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

pytestmark = pytest.mark.serve

SCRIPT = Path(__file__).parents[1] / "support" / "serving" / "startup.py"
CACHE_BYTES = int(ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"]) << 30
BLOCK_TOKENS = 128
"""vLLM rounds down to whole blocks, of 16 to 128 tokens."""

LINE = re.compile(r"CPU KV cache size: ([\d,]+) tokens")

PLAIN = {"quantization_config": None}
"""The CPU backend has no kernels for most quantised weights; they have no say in the cache."""

MODELS = {
    **{n: GROUPED[n] for n in ("llama", "qwen3", "qwen3-moe", "mixtral", "glm-4.7")},
    "minimax-m2": replace(GROUPED["minimax-m2"], changes=GROUPED["minimax-m2"].changes | PLAIN),
    **{n: MLA[n] for n in ("v3-bf16", "v2-lite")},
    "kimi-k2": replace(MLA["kimi-k2"], changes=MLA["kimi-k2"].changes | PLAIN),
    "longcat": HYBRIDS["longcat"],
}
LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "dp2": (1, 2)}
ALWAYS = ("v3-bf16", "tp2")
"""The others run under `make test-matrix`, a third of a minute each."""


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(
            *case,
            marks=() if case == ALWAYS else pytest.mark.matrix(part="cache"),
            id="-".join(case),
        )
        for case in product(MODELS, LAYOUTS)
    ],
)
def test_the_cache_holds_as_many_tokens_as_vllm_says(name: str, layout: str, tmp_path: Path):
    tp, dp = LAYOUTS[layout]
    directory = MODELS[name].write(tmp_path / name)
    log = started(directory, tp, dp)
    model = read_model(str(directory))
    deployment = Deployment(ParallelLayout(tp=tp, dp=dp))
    per_token = model.kv_bytes_per_token("auto", range(model.num_layers), deployment)
    (logged,) = {int(tokens.replace(",", "")) for tokens in LINE.findall(log)}
    print(f"{name}, {layout}: {CACHE_BYTES / per_token:,.1f} planned, {logged:,} logged")
    assert 0 <= CACHE_BYTES / per_token - logged < BLOCK_TOKENS


def started(directory: Path, tp: int, dp: int) -> str:
    """The log of an engine that started and stopped."""
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), str(tp), str(dp)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=os.environ | ENVIRONMENT,
    )
    assert finished.returncode == 0, finished.stdout[-6000:]
    return finished.stdout
