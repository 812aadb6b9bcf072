"""A sliding window that stands in the config of a model whose class reads none itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_layershard import load_model

CONFIGS = Path(__file__).parents[3] / "vllm_layershard" / "models" / "configs"
SWITCHED = "Qwen--Qwen3-235B-A22B"
"""Its config class drops the window unless `use_sliding_window` says otherwise."""
OTHERS = (
    "zai-org--GLM-4.7",
    "MiniMaxAI--MiniMax-M2",
    "inclusionAI--Ling-1T",
    "mistralai--Mixtral-8x22B-v0.1",
)


def windows(name: str, changes: dict[str, Any], folder: Path) -> set[int | None]:
    """Those of all layers."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads((CONFIGS / f"{name}.json").read_text()) | changes))
    layers = load_model(path).model.blueprint.layers
    return {segment.attention.window for layer in layers for segment in layer}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 0}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention"]}, 4096),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, None),
    ],
)
def test_vllm_gives_it_to_every_layer(
    name: str, changes: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    assert windows(name, changes, tmp_path) == {expected}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": 4096}, None),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"sliding_window": 0, "use_sliding_window": True}, None),
    ],
)
def test_a_switch_drops_it(changes: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    assert windows(SWITCHED, changes, tmp_path) == {expected}
