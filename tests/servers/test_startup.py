"""The planner's cache bytes are those of the line that vLLM logs when it starts.

Every family that the CPU backend can run, with empty weights of small sizes. Not gpt-oss and the
hybrids: of layers with windows or states, vLLM's line depends on the longest sequence that it is
told of. The other line, "Model loading took", is printed by vLLM's GPU runners only; its bytes are
held by the truth tests. The main run compares the line of its own servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving.cache import check_cache
from serving.layout import Layout
from serving.server import ENVIRONMENT
from tests.vllm.truth.test_truth_grouped import CASES as GROUPED
from tests.vllm.truth.test_truth_hybrids import CASES as HYBRIDS
from tests.vllm.truth.test_truth_mla import CASES as MLA

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="cache")]

SCRIPT = Path(__file__).parents[1] / "support" / "serving" / "startup.py"
PLAIN = {"quantization_config": None}
"""The CPU backend has no kernels for most quantised weights; they have no say in the cache."""

MODELS = {
    **{n: GROUPED[n] for n in ("llama", "qwen3", "qwen3-moe", "mixtral", "glm-4.7")},
    "minimax-m2": replace(GROUPED["minimax-m2"], changes=GROUPED["minimax-m2"].changes | PLAIN),
    **{n: MLA[n] for n in ("v3-bf16", "v2-lite")},
    "kimi-k2": replace(MLA["kimi-k2"], changes=MLA["kimi-k2"].changes | PLAIN),
    "longcat": HYBRIDS["longcat"],
}
LAYOUTS = {"tp1": Layout(), "tp2": Layout(tp=2), "dp2": Layout(dp=2)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_holds_as_many_tokens_as_vllm_says(name: str, layout: str, tmp_path: Path):
    directory = MODELS[name].write(tmp_path / name)
    check_cache(started(directory, LAYOUTS[layout]), directory, LAYOUTS[layout])


def started(directory: Path, layout: Layout) -> str:
    """The log of an engine that started and stopped."""
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), str(layout.tp), str(layout.dp)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=os.environ | ENVIRONMENT,
    )
    assert finished.returncode == 0, finished.stdout[-6000:]
    return finished.stdout
