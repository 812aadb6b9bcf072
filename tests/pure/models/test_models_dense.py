"""Dense models and what tells them apart: heads, windows, tied heads, widths that nobody has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truth.stated import GLM_4_7_FLASH, MISTRAL_7B, QWEN2_5_72B, QWEN3_5_27B, QWEN3_VL_4B
from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models import Deployment, Model, read_model
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.plan import ParallelLayout

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}


def read(tmp_path: Path, stated: object) -> Model:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    return read_model(str(tmp_path))


def test_parts_of_a_mistral_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ada_rms_norm_t_cond: is not known"):
        read(tmp_path, MISTRAL_7B | {"ada_rms_norm_t_cond": True})


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, (False, False)),
        ({"bias": True}, (True, True)),
        ({"qkv_bias": True}, (True, False)),
        ({"qkv_bias": False, "attention_bias": True}, (False, True)),
        ({"qkv_bias": None, "bias": True}, (False, True)),
    ],
)
def test_the_biases_of_a_llama(
    tmp_path: Path, changes: dict[str, object], biases: tuple[bool, bool]
) -> None:
    attention = read(tmp_path, MISTRAL_7B | changes).blueprint.layers[0][0].attention
    assert isinstance(attention, GroupedAttention)
    assert (attention.qkv_bias, attention.out_bias) == biases


SLIDING = {"use_sliding_window": True, "sliding_window": 4096}
MIXED = ["full_attention", "sliding_attention"] * 40
PARTLY = "a part of the 80 layers has a sliding window"


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),
        (SLIDING | {"max_window_layers": 80}, None),
        (SLIDING | {"max_window_layers": 0}, 4096),
        (SLIDING | {"max_window_layers": 28, "sliding_window": None}, None),
        (SLIDING | {"layer_types": ["sliding_attention"] * 80}, 4096),
        ({"layer_types": ["sliding_attention"] * 80}, None),
        # vLLM compares the two numbers alone, and then gives no layer a window.
        (SLIDING | {"layer_types": MIXED}, None),
    ],
)
def test_all_layers_of_a_qwen_have_a_window_or_none(
    tmp_path: Path, changes: dict[str, object], window: int | None
) -> None:
    for stated in (QWEN2_5_72B, QWEN2_5_72B | QWEN3):
        layers = read(tmp_path, stated | changes).blueprint.layers
        assert {segment.attention.window for layer in layers for segment in layer} == {window}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (SLIDING | {"max_window_layers": 28}, "max_window_layers"),
        (SLIDING | {"max_window_layers": 28, "sliding_window": 0}, "max_window_layers"),
        (SLIDING | {"max_window_layers": 28, "layer_types": MIXED}, "layer_types"),
        ({"max_window_layers": 28, "layer_types": MIXED}, "layer_types"),
    ],
)
def test_windows_on_a_part_of_a_qwens_layers_are_refused(
    tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    for stated in (QWEN2_5_72B, QWEN2_5_72B | QWEN3):
        with pytest.raises(ModelError, match=f": {key}: {PARTLY}"):
            read(tmp_path, stated | changes)
    unsaid = {k: v for k, v in (QWEN2_5_72B | changes).items() if k != "max_window_layers"}
    with pytest.raises(ModelError, match=f": {key}: {PARTLY}"):
        read(tmp_path, unsaid)


def test_windows_on_a_part_of_the_layers_within_a_multimodal_model(tmp_path: Path) -> None:
    text = QWEN3_VL_4B["text_config"] | {"sliding_window": 4096}
    layers = read(tmp_path, QWEN3_VL_4B | {"text_config": text}).blueprint.layers
    assert {segment.attention.window for layer in layers for segment in layer} == {4096}
    text |= {"layer_types": ["full_attention", "sliding_attention"] * 18}
    with pytest.raises(ModelError, match="text_config: layer_types: a part of the 36 layers"):
        read(tmp_path, QWEN3_VL_4B | {"text_config": text})


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
