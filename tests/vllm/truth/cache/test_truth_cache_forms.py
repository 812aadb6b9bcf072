"""The form of sparse MLA's cache on each device is that which vLLM's own code chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.truth.test_truth_mla import SMALL_LORA
from truth.asking import answers_of
from truth.compare import Case
from vllm_layershard.errors import ConfigError, HardwareError
from vllm_layershard.models import CacheDevice, read_model
from vllm_layershard.models.cache.kv_cache import HeadsCache, LatentCache

SCRIPT = Path(__file__).parents[3] / "support" / "truth" / "vllm_cache_forms.py"
BYTES = {"auto": 1152, "bfloat16": 1152, "float16": 1152, "fp8": 576, "fp8_e4m3": 576}
PACKED = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
CACHE = LatentCache(kv_lora=512, rope=64, sparse=True)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    cases = {"v3.2": "deepseek-ai--DeepSeek-V3.2", "glm-5": "zai-org--GLM-5"}
    return {name: str(Case(of, SMALL_LORA).write(root / name)) for name, of in cases.items()}


@pytest.fixture(scope="module")
def forms(directories: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = answers_of(SCRIPT, directories)
    return found


CAPABILITIES = ("8.0", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
NOT_ASKED = ("9.0", "float16")
"""FlashAttention's backend takes it there, whose kernels cannot be imported here."""


def device(capability: str) -> CacheDevice:
    rocm = capability == "rocm"
    return CacheDevice(None if rocm else int(float(capability)), rocm=rocm)


@pytest.mark.parametrize("capability", [*CAPABILITIES, "rocm"])
def test_bytes_are_those_of_the_form_that_vllm_takes(
    capability: str, forms: dict[str, Any], directories: dict[str, str]
) -> None:
    here = device(capability)
    model = read_model(directories["v3.2"])._replace(cache_device=here)
    for asked, form in forms[capability].items():
        dtype = asked if asked == "bfloat16" else model.cache_dtype(asked)
        if form is not None:
            found = CACHE.bytes_per_token(dtype, "bfloat16", here)
            assert found == (BYTES | PACKED)[form], asked
        elif (capability, asked) != NOT_ASKED:
            with pytest.raises((ConfigError, HardwareError)):
                CACHE.bytes_per_token(dtype, "bfloat16", here)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_heads_keep_what_the_first_backend_keeps(capability: str, forms: dict[str, Any]) -> None:
    for question, of_a_head in forms[f"heads {capability}"].items():
        size, asked = question.split()
        cache = HeadsCache(heads=2, key_dim=int(size), value_dim=int(size))
        if of_a_head is not None:
            found = cache.bytes_per_token(asked, "bfloat16", device(capability))
            assert found == 2 * of_a_head, question
        else:
            with pytest.raises(ConfigError):
                cache.bytes_per_token(asked, "bfloat16", device(capability))
    assert forms["heads 9.0"]["128 nvfp4"] == 2 * (64 + 8)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "12.0", "12.1"])
def test_v3_2_takes_bfloat16_for_auto(
    capability: str, forms: dict[str, Any], directories: dict[str, str]
) -> None:
    assert forms["v3.2 bfloat16"] == "auto"
    model = read_model(directories["v3.2"])._replace(cache_device=device(capability))
    assert model.cache_dtype("bfloat16") == model.cache_dtype("auto")
    found = CACHE.bytes_per_token(model.cache_dtype("bfloat16"), "bfloat16", device(capability))
    assert found == (BYTES | PACKED)[forms[capability]["auto"]]
    glm = read_model(directories["glm-5"])._replace(cache_device=device(capability))
    assert glm.cache_dtype("bfloat16") == "bfloat16"


def test_a_form_that_no_backend_of_the_device_takes_is_refused(forms: dict[str, Any]) -> None:
    assert forms["9.0"]["nvfp4_ds_mla"] is None
    with pytest.raises(ConfigError, match="its bytes are not known"):
        CACHE.bytes_per_token("nvfp4_ds_mla", "bfloat16", CacheDevice(9))


def test_glm_takes_eight_bits_by_itself_where_vllm_does(
    forms: dict[str, Any], directories: dict[str, str]
) -> None:
    glm = read_model(directories["glm-5"])
    for capability in ("9.0", "10.0", "10.3"):
        here = glm._replace(cache_device=CacheDevice(int(float(capability))))
        said = forms["glm auto"][capability]
        assert here.cache_dtype("auto") == ("bfloat16" if said == "auto" else said)
    assert set(forms["glm auto"].values()) == {"auto", "fp8_e4m3"}
