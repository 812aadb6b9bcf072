"""The planner's names of modules and its methods equal those of vLLM's own classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from truth.compare import ENVIRONMENT
from vllm_layershard.models import supported
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.quantization.read import UNREAD_METHODS, known_methods

SAID = """
import json, sys
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.models.registry import ModelRegistry

said = {"methods": QUANTIZATION_METHODS}
for name in json.load(sys.stdin):
    model = ModelRegistry.models[name].load_model_cls()
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renames = mapper.get_rename_mapper() if mapper is not None else None
    said[name] = {
        "fused": getattr(model, "packed_modules_mapping", None) or {},
        "renames": mapper is not None,
        "prefixes": dict(renames.orig_to_new_prefix) if renames else {},
        "substrings": dict(renames.orig_to_new_substr) if renames else {},
        "others": bool(renames and (renames.orig_to_new_regex or renames.orig_to_new_renaming)),
    }
print(json.dumps(said))
"""

LATER = {
    "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}
"""What DeepSeek's classes and Qwen3-MoE's add to their mapping when they are made."""

TOWER = {"qkv": ["qkv"]}
"""Of vision towers, which are not planned."""


@cache
def said() -> dict[str, Any]:
    """What vLLM's classes say, asked once."""
    result = subprocess.run(
        [sys.executable, "-c", SAID],
        input=json.dumps(supported()),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("architecture", supported())
def test_names_are_those_of_the_class(architecture: str) -> None:
    names, vllm = names_of(architecture), said()[architecture]
    fused = {name: list(parts) for name, parts in names.fused.items()}
    assert {key: fused[key] for key in vllm["fused"] if key not in TOWER} == {
        key: parts for key, parts in vllm["fused"].items() if key not in TOWER
    }
    added = {key: parts for key, parts in fused.items() if key not in vllm["fused"]}
    assert added.items() <= LATER.items()
    assert names.renames == vllm["renames"]
    assert dict(names.prefixes) == vllm["prefixes"]
    assert dict(names.substrings) == vllm["substrings"]
    assert not vllm["others"]


@pytest.mark.matrix(part="truth")
def test_every_method_of_vllm_is_read_or_known_to_be_unread() -> None:
    assert set(said()["methods"]) == (known_methods() | set(UNREAD_METHODS)) - {
        "ascend",  # vllm-ascend's
        "auto-round",  # which vLLM turns into inc
    }
