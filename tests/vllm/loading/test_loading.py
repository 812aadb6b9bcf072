"""What a rank allocates and reads while the real vLLM model is loaded on two real ranks.

vLLM's CPU backend would pack the linears that are not sharded into memory of its own, beyond any
count; here it is told to leave them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hosted.engines import RANKS, run_engines
from hosted.memory import loaded_model
from hosted.pages import pages_read
from hosted.wide import LAYER_BYTES, LAYERS, wide_model

SMALL_BYTES = 512 << 10
"""What vLLM itself allocates and frees again while it loads: stacked experts, absorbed weights."""

NEIGHBOURS = 34
"""Pages: reading what stands before and after a tensor maps up to 16 of its own at each end."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def plain(model) -> list[dict[str, Any]]:
    return run_engines(model, None, loading)


def loading(rank: int, config) -> dict[str, Any]:
    from vllm_layershard.runtime.ops import bound_series

    pages: dict[str, tuple[int, int]] = {}
    file = Path(config.model_config.model, "model.safetensors")

    def between(model: torch.nn.Module) -> None:
        for module in model.modules():
            module._cpu_skip_gemm_dispatch = True
        load_weights = model.load_weights

        def watched(weights: Iterator[tuple[str, torch.Tensor]]) -> Any:
            kept = []  # one tensor keeps the file mapped until it is looked at

            def each() -> Iterator[tuple[str, torch.Tensor]]:
                for name, tensor in weights:
                    kept.append(tensor)
                    yield name, tensor

            loaded = load_weights(each())
            pages.update(pages_read(file))
            return loaded

        model.load_weights = watched

    _held, allocated = loaded_model(config, between)
    series = bound_series()
    return {
        "final": allocated.now_bytes,
        "peak": allocated.peak_bytes,
        "saved": sum(
            s.plan.ledger.replicated_bytes - s.resident_bytes() - s.slots.nbytes() for s in series
        ),
        "owned": {s.name: s.plan.owned_layers(rank) for s in series},
        "kept": {s.name: s.plan.series.kept_layer for s in series},
        "read": pages,
    }


EXCHANGE = pytest.mark.matrix(part="exchange")
CASES = [
    pytest.param({"layers": ["o_proj", "q_b_proj", "fused_qkv_a_proj"], "prefetch_step": 0}),
    pytest.param({"layers": ["o_proj"]}, marks=EXCHANGE),
    pytest.param({"layers": ["o_proj"], "keep_first": True}, marks=EXCHANGE),
    pytest.param(
        {"layers": ["o_proj", "q_b_proj"], "prefetch_step": 3, "verify": True},
        marks=EXCHANGE,
    ),
]


@pytest.mark.parametrize("sharding", CASES)
def test_at_most_one_layer_more_and_nothing_read_in_vain(sharding, model, plain):
    for rank, seen in enumerate(run_engines(model, sharding, loading)):
        assert not isinstance(seen, str), seen
        assert seen["final"] == plain[rank]["final"] - seen["saved"]
        assert seen["peak"] <= seen["final"] + LAYER_BYTES + SMALL_BYTES
        for name, owned in seen["owned"].items():
            kept = seen["kept"][name]
            moved = [layer for layer in LAYERS if layer != kept]
            assert list(owned) == [layer for layer in moved if layer % RANKS == rank]
            for layer in LAYERS:
                for stored in stored_as(name):
                    read, of = seen["read"][f"model.layers.{layer}.self_attn.{stored}.weight"]
                    assert of > 3 * NEIGHBOURS
                    whole = layer in owned or layer == kept
                    assert read == of if whole else read <= NEIGHBOURS, (name, layer)


def test_the_measure_sees_what_an_unsharded_rank_reads_and_holds(plain):
    for seen in plain:
        assert all(read == of for read, of in seen["read"].values())
        assert seen["saved"] == 0
        assert seen["final"] <= seen["peak"] <= seen["final"] + SMALL_BYTES


def stored_as(name: str) -> tuple[str, ...]:
    """The checkpoint's names of a linear that vLLM may fuse from several."""
    fused = {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
    return fused.get(name, (name,))
