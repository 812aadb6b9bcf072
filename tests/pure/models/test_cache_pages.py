"""Tokens of a cache that layers with states share: the arithmetic, and what vLLM has logged."""

from __future__ import annotations

import pytest

from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.cache.pages import LayerCaches
from vllm_layershard.plan import ParallelLayout

GIB = 1 << 30


def test_without_states_they_are_bytes_over_bytes() -> None:
    assert LayerCaches((100, 0, 50), ()).tokens(1499, 10) == 9
    assert LayerCaches((0, 0), (7,)).tokens(1499, 10) == 0
    assert LayerCaches((100,), ()).tokens(-1, 10) == 0


def test_pages_are_of_one_size_and_groups_of_as_many_layers() -> None:
    """A block of 32 tokens covers the state; two groups of states beside one of tokens."""
    caches = LayerCaches((100,) * 2, (3000,) * 4)
    blocks = 64_000_000 // (2 * 32 * 100)
    assert caches.tokens(64_000_000, 320) == int(blocks / (10 + 2 * 2) * 320)
    assert caches._replace(drafts=3).tokens(64_000_000, 320) == int(blocks / (10 + 2 * 5) * 320)
    assert caches.tokens(64_000_000, None) == blocks * 32


def test_nearly_as_many_layers_of_both_kinds_are_two_groups() -> None:
    caches = LayerCaches((100,) * 5, (3000,) * 4)
    blocks = 64_000_000 // (5 * 32 * 100)
    assert caches.tokens(64_000_000, 320) == int(blocks / (10 + 2) * 320)


@pytest.mark.parametrize("longest", [131_072])
def test_a_hybrid_holds_what_a_server_logged(longest: int) -> None:
    """noonghunna/club-3090 issue 612: Qwen3.6-35B-A3B, whose caches are those of Qwen3.5-35B-A3B.

    vLLM 0.24.0 on an RTX 5090 with an fp8 cache: 5.98 GiB hold 567,978 tokens.
    """
    per_token = 2 * 256 * 2
    state = (2 * 16 * 128 + 32 * 128) * 3 * 2 + 32 * 128 * 128 * 4
    caches = LayerCaches((per_token,) * 10, (state,) * 30)
    low, high = (int((5.98 + off) * GIB) for off in (-0.005, 0.005))
    assert caches.tokens(low, longest) <= 567_978 <= caches.tokens(high, longest)
    assert caches.tokens(int(5.98 * GIB), longest) == 567_978


def test_a_bundled_hybrid_counts_so_at_its_longest() -> None:
    model = read_model("Qwen3.5-397B-A17B")
    deployment = Deployment(ParallelLayout(dp=8), ep=True)
    layers = range(model.num_layers)
    plain = 40 * GIB // model.kv_bytes_per_token("auto", layers, deployment)
    counted = model.cache_tokens(40 * GIB, "auto", layers, deployment)
    assert 0.9 * plain < counted < plain
