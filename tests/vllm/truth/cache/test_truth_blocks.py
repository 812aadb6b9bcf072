"""Tokens of a cache's block on each device are those of the backend that vLLM takes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.truth.test_truth_mla import SMALL_LORA
from truth.asking import answers_of
from truth.compare import Case
from vllm_layershard.errors import ConfigError, HardwareError
from vllm_layershard.models import CacheDevice
from vllm_layershard.models.cache.kv_cache import AttentionCache, HeadsCache, LatentCache
from vllm_layershard.models.cache.pages import block_tokens

SCRIPT = Path(__file__).parents[3] / "support" / "truth" / "vllm_blocks.py"
CACHES: dict[str, AttentionCache] = {
    "heads": HeadsCache(heads=2, key_dim=128, value_dim=128),
    "latent": LatentCache(kv_lora=512, rope=64),
    "sparse": LatentCache(kv_lora=512, rope=64, sparse=True, indexer_dim=128),
}
CAPABILITIES = ("8.0", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int | None]:
    directory = tmp_path_factory.mktemp("models") / "v3.2"
    Case("deepseek-ai--DeepSeek-V3.2", SMALL_LORA).write(directory)
    found: dict[str, int | None] = answers_of(SCRIPT, str(directory))
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", CACHES)
def test_a_block_has_as_many_tokens_as_vllms(
    kind: str, capability: str, blocks: dict[str, int | None]
) -> None:
    device = CacheDevice(int(float(capability)))
    compared = 0
    for asked in ("auto", "bfloat16", "fp8", "fp8_e4m3"):
        tokens = blocks[f"{kind} {capability} {asked}"]
        try:
            CACHES[kind].bytes_per_token(asked, "bfloat16", device)
        except (ConfigError, HardwareError):
            continue  # the forms' test says where vLLM takes none
        if tokens is not None:
            assert block_tokens([CACHES[kind]], asked, device) == tokens, asked
            compared += 1
    assert compared or kind == "sparse"


def test_blocks_differ_by_device_and_by_dtype(blocks: dict[str, int | None]) -> None:
    assert blocks["latent 9.0 auto"] == 16
    assert blocks["latent 9.0 fp8"] == 64
    assert blocks["latent 10.0 auto"] == 32
    assert blocks["sparse 9.0 auto"] == blocks["sparse 10.0 fp8"] == 64
