"""What a comparison counts where layers keep a window of a sequence, or a state of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_layershard import compare_layouts
from vllm_layershard.estimate.capacity import capacity
from vllm_layershard.estimate.communicators import communicator_bytes
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.planner.hardware import load_hardware
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.plan import plan_model
from vllm_layershard.planner.results.compare_result import CompareResult, LayoutCapacity

MISTRAL: Mapping[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131_072,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def counted(found: CompareResult) -> LayoutCapacity:
    (held,) = found.layouts
    assert isinstance(held, LayoutCapacity)
    return held


def test_a_model_with_windows_counts_in_blocks_as_a_server_does() -> None:
    """gpt-oss on an H200: 198,603 blocks, of which a sequence takes 8,192 and 1,033."""
    found = compare_layouts("gpt-oss-120b", "dp4+ep", hardware="H200")
    held = counted(found)
    assert held.room_bytes == 117_140_866_045
    assert held.engine_tokens == int(198_603 / (8192 + 1033) * 131_072)
    (note,) = [note for note in found.warnings if "sequences" in note]
    assert "in sequences of the longest, 131,072" in note
    assert "8,192 tokens" in note
    assert "states" not in note


@pytest.mark.parametrize(("memory", "step"), [(200, 16_384), (139, 8192), (69, 2048)])
def test_steps_are_as_long_as_a_server_makes_them_on_the_device(memory: int, step: int) -> None:
    figure = load_hardware("H200").memory_bytes
    assert isinstance(figure, Figure)
    device = replace(load_hardware("H200"), memory_bytes=figure._replace(value=memory << 30))
    found = compare_layouts("gpt-oss-120b", "dp4+ep", hardware=device)
    held = counted(found)
    used = 8192 + -(-(127 + 2 * step) // 16) + 1
    assert held.engine_tokens == int(held.room_bytes // (18 * 16 * 2048) / used * 131_072)
    assert any(f"{step:,} tokens (--max-num-batched-tokens" in note for note in found.warnings)


@pytest.mark.parametrize(
    ("sizes", "step"),
    [
        ({}, 8192),
        ({"tokens": 32_768}, 32_768),
        ({"tokens": 1024}, 1024),
        ({"tokens": 16, "batch": 512}, 512),
    ],
)
def test_a_plan_counts_windows_beside_the_steps_of_its_launch(
    sizes: Mapping[str, int], step: int
) -> None:
    """An H200's default is 8,192 tokens, which the launch line overrides."""
    layout, device = Layout(dp=4, ep=True), load_hardware("H200")
    found = plan_model("gpt-oss-120b", None, layout, hardware=device, **sizes)
    assert f"--max-num-batched-tokens {step} " in found.launch
    used = 8192 + -(-(127 + 2 * step) // 16) + 1
    tokens = []
    private = communicator_bytes(found.planned, device)
    for saved, kept in ((lambda rank: 0, None), (found.planned.saved_bytes.__getitem__, private)):
        held = capacity(found.planned.model, found.planned.deployment, device, saved, "auto", kept)
        assert held.engine_tokens == int(held.room_bytes // (18 * 16 * 2048) / used * 131_072)
        tokens.append(held.engine_tokens)
    gained = found.document()["kv_cache"]["tokens_gained"]
    assert gained == tokens[1] - tokens[0]


def test_each_further_stage_has_a_step_more_in_flight() -> None:
    """Both stages hold nine layers of each group; the one with the fewest bytes limits both."""
    held = counted(compare_layouts("gpt-oss-120b", "pp2dp4+ep", hardware="H200"))
    used = 8192 + -(-(127 + 3 * 8192) // 16) + 1
    assert held.engine_tokens == int(held.room_bytes // (9 * 16 * 2048) / used * 131_072)


def test_windows_that_are_not_counted_are_told(tmp_path: Path) -> None:
    """On Ascend, and where a rope stretches the longest sequence in a way that is not known."""
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    rope = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({**MISTRAL, **rope}))
    windowed = counted(compare_layouts(str(tmp_path), "tp2", hardware="H200"))
    assert windowed.engine_tokens > windowed.room_bytes // (4 * 4 * 2 * 128 * 2)
    for model, device, block in ((str(odd), "H200", 16), (str(tmp_path), "910C", 128)):
        found = compare_layouts(model, "tp2", hardware=device)
        held = counted(found)
        assert held.engine_tokens == held.room_bytes // (block * 4 * 4 * 2 * 128 * 2) * block
        assert any("as if they kept all of a sequence" in note for note in found.warnings)


def test_a_model_that_keeps_all_of_each_sequence_has_no_note() -> None:
    found = compare_layouts("Qwen3-32B", "tp2", hardware="H200")
    blocks = counted(found).room_bytes // (16 * 64 * 4 * 2 * 128 * 2)
    assert counted(found).engine_tokens == blocks * 16
    assert not any("sequence" in note for note in found.warnings)
