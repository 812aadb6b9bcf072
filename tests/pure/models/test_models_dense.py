"""Dense models and what tells them apart: heads, windows, tied heads, widths that nobody has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truth.stated import GLM_4_7_FLASH, MISTRAL_7B, QWEN2_5_72B, QWEN3_5_27B, QWEN3_VL_4B
from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models import Deployment, Model, read_model
from vllm_layershard.plan import ParallelLayout


def read(tmp_path: Path, stated: object) -> Model:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    return read_model(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [("bias", True), ("qkv_bias", True), ("ada_rms_norm_t_cond", True)]
)
def test_parts_of_a_mistral_that_are_not_known_are_refused(
    tmp_path: Path, key: str, value: bool
) -> None:
    with pytest.raises(ModelError, match=f"{key}: is not known"):
        read(tmp_path, MISTRAL_7B | {key: value})


def test_an_encoder_keeps_no_cache_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is_causal: is false"):
        read(tmp_path, QWEN2_5_72B | {"is_causal": False})


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, {4096}),
        ({"sliding_window": None}, {None}),
        ({"sliding_window": 0}, {None}),
        ({"layer_types": ["full_attention", "sliding_attention"] * 16}, {None, 4096}),
    ],
)
def test_the_window_of_a_mistral_is_that_of_all_layers_or_of_each(
    tmp_path: Path, changes: dict[str, object], windows: set[int | None]
) -> None:
    layers = read(tmp_path, MISTRAL_7B | changes).blueprint.layers
    assert {segment.attention.window for layer in layers for segment in layer} == windows


def test_without_a_word_a_mistral_has_the_window_of_its_config_class(tmp_path: Path) -> None:
    unsaid = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
    layers = read(tmp_path, unsaid).blueprint.layers
    assert {segment.attention.window for layer in layers for segment in layer} == {4096}


def test_who_says_whether_the_head_is_tied(tmp_path: Path) -> None:
    """Qwen3-VL asks the whole config, Qwen3.5 its text part, as vLLM's classes do."""
    text = {"text_config": QWEN3_5_27B["text_config"] | {"tie_word_embeddings": True}}
    assert read(tmp_path, QWEN3_VL_4B).blueprint.tied
    assert not read(tmp_path, QWEN3_5_27B | {"tie_word_embeddings": True}).blueprint.tied
    assert read(tmp_path, QWEN3_5_27B | text).blueprint.tied


def test_a_width_that_no_layer_has_is_not_asked_to_divide(tmp_path: Path) -> None:
    """All layers are routed: the dense width of the config is nobody's."""
    stated = GLM_4_7_FLASH | {"intermediate_size": 10241}
    deployment = Deployment(ParallelLayout(tp=4))
    without = read(tmp_path, stated | {"first_k_dense_replace": 0})
    assert without.linears(deployment)
    with pytest.raises(PlanError, match="does not divide intermediate_size"):
        read(tmp_path, stated).linears(deployment)
