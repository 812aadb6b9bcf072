"""The form of sparse MLA's cache on each device is that which vLLM's own code chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.truth.test_truth_mla import SMALL_LORA
from truth.compare import ENVIRONMENT, Case
from vllm_layershard.errors import ConfigError
from vllm_layershard.models import CacheDevice, read_model
from vllm_layershard.models.cache.kv_cache import LatentCache

SCRIPT = Path(__file__).parents[2] / "support" / "truth" / "vllm_cache_forms.py"
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
    result = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(directories),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3", "12.0", "12.1", "rocm"])
def test_bytes_are_those_of_the_form_that_vllm_takes(
    capability: str, forms: dict[str, Any], directories: dict[str, str]
) -> None:
    rocm = capability == "rocm"
    device = CacheDevice(None if rocm else int(float(capability)), rocm=rocm)
    model = read_model(directories["v3.2"])._replace(cache_device=device)
    for asked, form in forms[capability].items():
        if form is not None:
            dtype = model.cache_dtype(asked)
            found = CACHE.bytes_per_token(dtype, "bfloat16", device)
            assert found == (BYTES | PACKED)[form], asked


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
