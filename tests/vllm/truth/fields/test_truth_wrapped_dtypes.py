"""A multimodal model has the dtype that vLLM takes: the whole's, or else a part's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from truth.compare import Case, Truth, names
from truth.published import PUBLISHED
from vllm_layershard.errors import ModelError
from vllm_layershard.models import FoundModel, Model, model_of
from vllm_layershard.models.sources.config_file import ConfigFile

ONE = ((1, 1, False),)
KINDS = ("qwen3_5", "qwen3_vl", "qwen3_vl_moe")
PLACES = {
    "the whole's": ("float16", "bfloat16", None),
    "the whole's, not the tower's": ("float16", None, "bfloat16"),
    "the language model's": (None, "float16", "bfloat16"),
    "the tower's": (None, None, "float16"),
    "float32 around it": ("float32", "float16", None),
}
"""The dtypes of the whole, of the language model and of the vision tower."""


def stated(kind: str, whole: str | None, text: str | None, tower: str | None) -> dict[str, Any]:
    config = dict(PUBLISHED[kind])
    inner = {key: within(config[key]) for key in ("text_config", "vision_config")}
    inner["text_config"] |= {"dtype": text} if text else {}
    inner["vision_config"] |= {"dtype": tower} if tower else {}
    return within(config) | inner | ({"dtype": whole} if whole else {})


def within(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in ("dtype", "torch_dtype")}


CASES = {
    f"{kind}: {place}": Case(stated(kind, *dtypes), layouts=ONE)
    for kind in KINDS
    for place, dtypes in PLACES.items()
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)


def read(config: Mapping[str, Any]) -> Model:
    return model_of(FoundModel("m", "local:m", ConfigFile("config", config)))


WRAPPERS = [kind for kind, config in PUBLISHED.items() if "text_config" in config]


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_wholes_dtype_comes_first(kind: str) -> None:
    config = PUBLISHED[kind]
    text = within(config["text_config"])
    outer = within(config)
    both = outer | {"torch_dtype": "float16", "text_config": text | {"dtype": "bfloat16"}}
    assert read(both).dtype == "float16"
    assert read(outer | {"text_config": text | {"dtype": "float16"}}).dtype == "float16"


def test_a_dtype_that_is_not_known_is_named_where_it_stands() -> None:
    config = stated("qwen3_vl", "float8", "bfloat16", None)
    with pytest.raises(ModelError, match=r"^config: dtype: 'float8' is not one of"):
        read(config)
