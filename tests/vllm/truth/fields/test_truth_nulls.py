"""A null is refused in each field in which vLLM takes none, and in no other.

Of every config that is planned, each field that is stated or that its class has becomes null in
turn, and its class is asked to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from truth.config_fields import KINDS, fields_where, read
from truth.published import PUBLISHED, WITHOUT_A_CLASS, put
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models.families.defaults import _CLASSES, _WRAPPERS
from vllm_layershard.models.families.null_fields import _AROUND, _BY_THE_CLASS, _BY_THE_MODEL

OTHERWISE = {"qwen3_next": {"full_attention_interval"}}
"""Its class takes a null for it beside layer_types alone, and the family reads it without them."""


def refused() -> dict[str, tuple[list[str], list[str]]]:
    """Model type -> fields that may not be null: of the language model, and of what is around."""
    return fields_where("not takes(field, None)")


def said(config: Mapping[str, Any]) -> str:
    """What is said against it; nothing where it is planned."""
    try:
        read(config)
    except LayerShardError as error:
        return str(error)
    return ""


def test_every_model_type_with_a_class_is_asked() -> None:
    assert set(KINDS) >= set(_BY_THE_CLASS) - {"qwen3_5_text", "qwen3_5_moe_text"}
    assert set(_BY_THE_CLASS) == {*_CLASSES, *_WRAPPERS} - set(WITHOUT_A_CLASS)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_take_no_null_are_those_that_the_class_refuses(kind: str) -> None:
    inner, _ = refused()[kind]
    assert set(_BY_THE_CLASS[kind].split()) == set(inner) - OTHERWISE.get(kind, set())


def test_fields_around_a_language_model_that_take_no_null() -> None:
    around = {field for kind in KINDS for field in refused()[kind][1]}
    assert set(_AROUND.split()) == around


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_them_is_named(kind: str) -> None:
    config = PUBLISHED[kind]
    within = "text_config" in config
    inner, around = refused()[kind]
    for field in [*inner, *_BY_THE_MODEL.get(kind, "").split()]:
        message = said(put(config, field, within, None))
        named = f"{field}: is null" in message or f"{field} is another name of it" in message
        assert named or field in OTHERWISE.get(kind, set()), field
    for field in around:
        assert f": {field}: is null" in said(config | {field: None})


def test_what_vllms_models_read_as_numbers() -> None:
    vllm = find_spec("vllm")
    assert vllm is not None
    (root,) = vllm.submodule_search_locations or ()
    models = Path(root, "model_executor", "models")
    latent, bailing = (models / f"{name}.py" for name in ("deepseek_v2", "bailing_moe"))
    assert "layer_idx >= config.first_k_dense_replace" in latent.read_text()
    assert "layer_idx % moe_layer_freq == 0" in latent.read_text()
    assert 'hasattr(config, "index_topk")' in latent.read_text()
    assert "self.total_kv_heads = config.num_key_value_heads" in bailing.read_text()
