"""The tokens of a step on each bundled device are those that vLLM schedules there by default."""

from __future__ import annotations

from typing import Any

import pytest

from truth.asking import answers_of
from vllm_layershard.estimate.capacity import cache_device_of
from vllm_layershard.estimate.devices.bundled import PRINTED, profile_names
from vllm_layershard.estimate.devices.named import profile

SCRIPT = """
import json, sys, types
from unittest.mock import patch
from vllm.engine import arg_utils
from vllm.usage.usage_lib import UsageContext

def tokens(name, memory_bytes):
    device = types.SimpleNamespace(
        get_device_total_memory=lambda: memory_bytes,
        get_device_name=lambda: name,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    with patch.object(arg_utils, "current_platform", device):
        found, _ = arg_utils.EngineArgs.get_batch_defaults(8)
    return found[UsageContext.OPENAI_API_SERVER]

print(json.dumps([tokens(*device) for device in json.load(sys.stdin)]))
"""
NAMES = {
    one: f"AMD Instinct {one}" if one.startswith("MI") else f"NVIDIA {one}"
    for one in profile_names()
    if not one.startswith("910")
}
NAMES |= {one: text for text, one in PRINTED.items() if one in NAMES}
"""Profile -> what its platform prints. Ascend's steps are counted nowhere."""


@pytest.fixture(scope="module")
def steps() -> dict[str, int]:
    memory = {one: profile(one).memory_bytes for one in NAMES}
    asked = [(NAMES[one], int(figure.value)) for one, figure in memory.items() if figure]
    found: list[Any] = answers_of(SCRIPT, asked)
    return dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_as_long_as_vllms(name: str, steps: dict[str, int]) -> None:
    assert cache_device_of(profile(name)).step_tokens == steps[name]


def test_an_a100_has_shorter_steps_than_others_of_its_memory(steps: dict[str, int]) -> None:
    assert (steps["A100"], steps["H100"], steps["B200"]) == (2048, 8192, 16_384)
    known = profile("A100").memory_bytes
    assert known is not None
    assert known.value >= 70 << 30
