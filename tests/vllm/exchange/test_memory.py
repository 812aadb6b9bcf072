"""What a rank holds, and the most that it ever held, while whole linears are loaded and sharded.

Against the control, which exchanges tokens, too, and stores every whole linear on every rank.
vLLM's CPU backend would pack linears into memory of its own, beyond any count; here it is told to
leave them as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hosted.engines import run_engines
from hosted.memory import loaded_model
from hosted.wide import LAYER_BYTES, LAYERS, wide_model

SMALL_BYTES = 512 << 10
"""What vLLM itself allocates and frees again while it loads: stacked experts, absorbed weights."""


def loading(rank: int, config: Any) -> dict[str, Any]:
    from vllm_layershard.runtime.ops import bound_series

    def between(model: torch.nn.Module) -> None:
        for module in model.modules():
            module._cpu_skip_gemm_dispatch = True

    _held, allocated = loaded_model(config, between)
    (series,) = bound_series()
    ledger = series.plan.ledger
    return {
        "final": allocated.now_bytes,
        "peak": allocated.peak_bytes,
        "replicated": ledger.replicated_bytes,
        "planned": ledger.resident_bytes[rank] + ledger.slot_bytes,
        "measured": series.resident_bytes() + series.slots.nbytes(),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide"))


def asking(**options: Any) -> dict[str, Any]:
    return {"layers": ["o_proj"], "token_exchange": ["o_proj"], **options}


def test_at_most_one_whole_linear_more_than_the_plan_says(model):
    sharded, control = (
        run_engines(model, asking(**options), loading, tp=2)
        for options in ({}, {"placement": "replicated"})
    )
    for seen, whole in zip(sharded, control, strict=True):
        assert not isinstance(seen, str), seen
        assert not isinstance(whole, str), whole
        assert seen["measured"] == seen["planned"]
        assert whole["planned"] == whole["replicated"] == seen["replicated"]
        assert seen["replicated"] == len(LAYERS) * LAYER_BYTES
        assert seen["final"] == whole["final"] - seen["replicated"] + seen["planned"]
        assert seen["peak"] <= seen["final"] + LAYER_BYTES + SMALL_BYTES
