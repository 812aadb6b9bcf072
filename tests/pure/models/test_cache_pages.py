"""Tokens of a cache that layers with states share: the arithmetic, and what vLLM has logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truth.stated import QWEN3_5_27B
from vllm_layershard.errors import PlanError
from vllm_layershard.models import CacheDevice, Deployment, layer_caches, read_model
from vllm_layershard.models.cache.ascend_page import ascend_page
from vllm_layershard.models.cache.kv_cache import HeadsCache, StateCache
from vllm_layershard.models.cache.pages import LayerCache, LayerCaches, Page
from vllm_layershard.plan import ParallelLayout

GIB = 1 << 30
NPU = CacheDevice(capability=None)


def hybrid(of_tokens: tuple[int, ...], states: tuple[int, ...]) -> LayerCaches:
    return LayerCaches((*map(LayerCache, of_tokens), *(LayerCache(0, state) for state in states)))


def windowed(full: int, windows: tuple[int, ...], in_flight: int | None) -> LayerCaches:
    """Layers of 2,048 bytes a token, of which some look back at a window."""
    slide = (LayerCache(2048, window=window) for window in windows)
    return LayerCaches((*slide, *(LayerCache(2048),) * full), in_flight=in_flight)


def test_without_states_they_are_whole_blocks_of_all_layers() -> None:
    assert hybrid((100, 0, 50), ()).tokens(10 * 16 * 150 - 1, 32) == 9 * 16
    assert hybrid((100, 0, 50), ()).tokens(10 * 16 * 150 - 1, None) == 9 * 16
    assert hybrid((0, 0), (7,)).tokens(1499, 10) is None
    assert hybrid((100,), ()).tokens(-1, 10) == 0


def test_a_sequence_takes_the_whole_of_its_last_block() -> None:
    """Of 33 tokens each takes three blocks, of 32 two."""
    caches = hybrid((100,), ())
    assert caches.tokens(9 * 16 * 100, 33) == 3 * 33
    assert caches.tokens(10 * 16 * 100, 33) == int(10 / 3 * 33)
    assert caches._replace(block=64).tokens(10 * 16 * 100, 33) == 2 * 33


def test_pages_are_of_one_size_and_groups_of_as_many_layers() -> None:
    """A block of 32 tokens covers the state; two groups of states beside one of tokens."""
    caches = hybrid((100,) * 2, (3000,) * 4)
    blocks = 64_000_000 // (2 * 32 * 100)
    assert caches.tokens(64_000_000, 320) == int(blocks / (10 + 2 * 2) * 320)
    assert caches._replace(drafts=3).tokens(64_000_000, 320) == int(blocks / (10 + 2 * 5) * 320)
    assert caches.tokens(64_000_000, None) == blocks * 32


def test_nearly_as_many_layers_of_both_kinds_are_two_groups() -> None:
    caches = hybrid((100,) * 5, (3000,) * 4)
    blocks = 64_000_000 // (5 * 32 * 100)
    assert caches.tokens(64_000_000, 320) == int(blocks / (10 + 2) * 320)


@pytest.mark.parametrize(("in_flight", "tokens"), [(8192, 2_987_638), (16_384, 2_821_820)])
def test_layers_with_windows_take_blocks_of_their_own(in_flight: int, tokens: int) -> None:
    """gpt-oss-120b on an H200; what vLLM's own functions say of the same bytes."""
    caches = windowed(18, (128,) * 18, in_flight)
    assert caches.tokens(117_140_866_045, 131_072) == tokens


def test_groups_of_windows_are_as_wide_as_the_kind_with_the_fewest_layers() -> None:
    """Five layers of one window are three groups of two, beside one of two full layers."""
    blocks = 64_000_000 // (2 * 16 * 2048)
    used = 64 + 3 * (-(-(99 + 300) // 16) + 1)
    assert windowed(2, (100,) * 5, 300).tokens(64_000_000, 1024) == int(blocks / used * 1024)


def test_two_windows_are_two_kinds_and_none_keeps_more_than_a_sequence() -> None:
    blocks = 64_000_000 // (2 * 16 * 2048)
    used = 64 + (-(-(99 + 300) // 16) + 1) + (64 + 1)
    caches = windowed(2, (100, 100, 900, 900), 300)
    assert caches.tokens(64_000_000, 1024) == int(blocks / used * 1024)


def test_a_model_of_windows_alone_is_one_group() -> None:
    blocks = 64_000_000 // (4 * 16 * 2048)
    used = -(-(99 + 300) // 16) + 1
    assert windowed(0, (100,) * 4, 300).tokens(64_000_000, 1024) == int(blocks / used * 1024)


def test_windows_that_are_not_counted_keep_all() -> None:
    """Without tokens in flight, without a longest sequence, and where layers' pages differ."""
    of_all = 64_000_000 // (16 * 6 * 2048) * 16
    assert windowed(2, (100,) * 4, None).tokens(64_000_000, 1024) == of_all
    assert windowed(2, (100,) * 4, 300).tokens(64_000_000, None) == of_all
    caches = windowed(2, (100,) * 4, 300)
    more = caches._replace(layers=(*caches.layers, LayerCache(4096)))
    assert not more.in_sequences(1024)
    assert more.tokens(64_000_000, 1024) == 64_000_000 // (16 * (6 * 2048 + 4096)) * 16


def test_a_stage_keeps_its_part_of_the_groups_of_all_layers() -> None:
    """Of six windows in three groups by turns, one stage has all of the first four."""
    caches = windowed(2, (100,) * 6, 300)
    here = tuple(i < 4 for i in range(8))
    layers = (one._replace(here=it) for one, it in zip(caches.layers, here, strict=True))
    stage = caches._replace(layers=tuple(layers))
    used = 64 + 3 * (-(-(99 + 300) // 16) + 1)
    blocks = 64_000_000 // (2 * 16 * 2048)  # the first group has two of the four layers
    assert stage.tokens(64_000_000, 1024) == int(blocks / used * 1024)
    gone = (one._replace(here=False) for one in caches.layers)
    assert caches._replace(layers=tuple(gone)).tokens(64_000_000, 1024) is None


@pytest.mark.parametrize("longest", [131_072])
def test_a_hybrid_holds_what_a_server_logged(longest: int) -> None:
    """noonghunna/club-3090 issue 612: Qwen3.6-35B-A3B, whose caches are those of Qwen3.5-35B-A3B.

    vLLM 0.24.0 on an RTX 5090 with an fp8 cache: 5.98 GiB hold 567,978 tokens.
    """
    per_token = 2 * 256 * 2
    state = (2 * 16 * 128 + 32 * 128) * 3 * 2 + 32 * 128 * 128 * 4
    caches = hybrid((per_token,) * 10, (state,) * 30)
    low, high = (int((5.98 + off) * GIB) for off in (-0.005, 0.005))
    assert caches.tokens(low, longest) <= 567_978 <= caches.tokens(high, longest)
    assert caches.tokens(int(5.98 * GIB), longest) == 567_978


def test_a_bundled_hybrid_counts_so_at_its_longest() -> None:
    model = read_model("Qwen3.5-397B-A17B")
    deployment = Deployment(ParallelLayout(dp=8), ep=True)
    layers = range(model.num_layers)
    plain = 40 * GIB // model.kv_bytes_per_token("auto", layers, deployment)
    counted = model.cache_tokens(40 * GIB, "auto", layers, deployment) or 0
    assert 0.9 * plain < counted < plain


HYBRIDS = {
    # 32 heads of 128 x 128 in bfloat16; keys of 2 heads of 256; a convolution of 8,192 channels
    ("Qwen3-Next-80B-A3B-Instruct", 1, 0): (1024, 1024 * 2048 + 8192 * 3 * 2),
    ("Qwen3-Next-80B-A3B-Instruct", 1, 2): (1024, 1024 * 2048 + 8192 * 5 * 2),
    ("Qwen3-Next-80B-A3B-Instruct", 2, 0): (1024, 1024 * 1024 + 4096 * 3 * 2),
    ("Qwen3-Next-80B-A3B-Instruct", 4, 0): (512, 512 * 1024 + 2048 * 3 * 2),  # heads are copied
    # 48 heads in float32; keys of 4 heads of 256; 10,240 channels
    ("Qwen3.5-27B", 1, 0): (1536, 1536 * 4096 + 10_240 * 3 * 2),
    ("Qwen3.5-27B", 2, 0): (1536, 1536 * 2048 + 5120 * 3 * 2),
    ("Qwen3.5-27B", 2, 2): (1536, 1536 * 2048 + 5120 * 5 * 2),
    # 64 heads in float32; keys of 2 heads of 256; 12,288 channels
    ("Qwen3.5-397B-A17B", 1, 0): (4096, 4096 * 2048 + 12_288 * 3 * 2),
    ("Qwen3.5-397B-A17B", 2, 0): (4096, 4096 * 1024 + 6144 * 3 * 2),
    ("Qwen3.5-397B-A17B", 2, 1): (4096, 4096 * 1024 + 6144 * 4 * 2),
}
"""Model, tensor parallelism and drafted tokens -> tokens and bytes of a page, summed by hand.

Source: vllm-ascend 182b75e, patch/platform/patch_mamba_config.py, which logs the tokens.
"""


@pytest.mark.parametrize(("name", "tp", "drafted"), HYBRIDS)
def test_on_ascend_keys_are_as_large_as_a_state(
    name: str, tp: int, drafted: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_5_27B))
    model = read_model(str(tmp_path) if name == "Qwen3.5-27B" else name)._replace(drafted=drafted)
    asked = "auto", range(model.num_layers), Deployment(ParallelLayout(tp=tp))
    page = layer_caches(model._replace(cache_device=NPU), *asked).page
    assert page == Page(*HYBRIDS[name, tp, drafted])
    assert layer_caches(model, *asked).page is None, "on CUDA"


@pytest.mark.parametrize(("drafted", "full"), [(0, 12), (2, 13)])
def test_on_ascend_a_hybrid_holds_blocks_of_those_pages(drafted: int, full: int) -> None:
    """Three groups of 12 layers with states, each of which holds two pages and one a draft."""
    model = read_model("Qwen3-Next-80B-A3B-Instruct")
    model = model._replace(drafted=drafted, cache_device=NPU)
    _, page = HYBRIDS["Qwen3-Next-80B-A3B-Instruct", 1, drafted]
    blocks = 40 * GIB // (full * page)
    held = model.cache_tokens(40 * GIB, "auto", range(48), Deployment(ParallelLayout()))
    assert held == int(blocks / (262_144 // 1024 + 3 * (2 + drafted)) * 262_144)


def test_on_ascend_keys_of_eight_bits_make_no_page_smaller() -> None:
    """The state fills it all the same. A draft layer, which keeps its dtype, is then a kind."""
    model = read_model("Qwen3-Next-80B-A3B-Instruct")._replace(cache_device=NPU)
    eight = model._replace(int8_layers=frozenset(range(48)))
    asked = 40 * GIB, "auto", range(48), Deployment(ParallelLayout())
    assert eight.cache_tokens(*asked) == model.cache_tokens(*asked)
    _, page = HYBRIDS["Qwen3-Next-80B-A3B-Instruct", 1, 2]
    used = (12 + 1) * 256 + 36 * (2 + 2)  # groups of one layer each, as the drafts' is
    drafting = eight._replace(drafted=2)
    assert drafting.cache_tokens(*asked) == int(40 * GIB // page / used * 262_144)


def test_on_ascend_a_state_that_keys_cannot_fill_is_refused() -> None:
    """vllm-ascend's server would end: "Cannot align ssm_page_size and attn_page_size"."""
    heads, whole = HeadsCache(2, 256, 256), 128 * 2 * 256 * 2
    fits = [StateCache((700, 3 * whole)), heads]
    assert ascend_page(fits, "auto", "bfloat16", NPU) == Page(384, 6 * whole + 700)
    for state in (3 * whole + 2, whole // 2):
        with pytest.raises(PlanError, match=f"keeps a state of {state:,} bytes on a rank"):
            ascend_page([StateCache((700, state)), heads], "auto", "bfloat16", NPU)


def test_on_ascend_only_states_beside_keys_have_such_a_page() -> None:
    for caches in ([HeadsCache(2, 256, 256)], [StateCache((7,))], []):
        assert ascend_page(caches, "auto", "bfloat16", NPU) is None
