"""What is neither true nor false is refused in each field in which the class refuses it.

Of every config that is planned, each field that is stated or that its class has becomes true,
false, 1 and "true" in turn, and its class is asked to read it. Elsewhere vLLM's models ask no more
than whether it counts as true.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from truth.config_fields import KINDS, fields_where, read
from truth.published import PUBLISHED, put
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment
from vllm_layershard.models.families.booleans import _AROUND, _BY_THE_CLASS, _CONDITIONS
from vllm_layershard.plan import ParallelLayout


def booleans() -> dict[str, tuple[list[str], list[str]]]:
    """Model type -> fields that are true or false: of the language model, and around it."""
    refuses = "not takes(field, 1) and not takes(field, 'true')"
    return fields_where(f"{refuses} and takes(field, True) and takes(field, False)")


def planned(config: Mapping[str, Any]) -> tuple[str, object]:
    """What is said against it; nothing where it is planned, and then what a rank holds of it."""
    try:
        model = read(config)
    except LayerShardError as error:
        return str(error), None
    return "", model.weight_bytes(Deployment(ParallelLayout()), 0)


def said(config: Mapping[str, Any]) -> str:
    return planned(config)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_are_those_of_the_class(kind: str) -> None:
    inner, around = booleans()[kind]
    assert set(_BY_THE_CLASS[kind].split()) == set(inner)
    if "text_config" in PUBLISHED[kind]:
        assert set(_AROUND.split()) == set(around)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_them_is_named(kind: str) -> None:
    config = PUBLISHED[kind]
    within = "text_config" in config
    inner, around = booleans()[kind]
    for value, text in ((1, "1"), ("true", '"true"')):
        for field in inner:
            message = said(put(config, field, within, value))
            assert f": {field}: {text} is neither true nor false" in message, field
        for field in around:
            message = said(config | {field: value})
            assert f": {field}: {text} is neither true nor false" in message, field


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_field_that_no_class_checks_counts_as_in_python(kind: str) -> None:
    config = PUBLISHED[kind]
    within = "text_config" in config
    checked = _BY_THE_CLASS.get(kind, "").split()
    for field in set(_CONDITIONS.split()) - set(checked):
        for value in (1, "true", 0, ""):
            plain = put(config, field, within, bool(value))
            assert planned(put(config, field, within, value)) == planned(plain), field


def test_what_vllms_models_ask_of_a_condition() -> None:
    vllm = find_spec("vllm")
    assert vllm is not None
    (root,) = vllm.submodule_search_locations or ()
    models = Path(root, "model_executor", "models")
    bailing, minimax, llama, qwen2 = (
        (models / f"{name}.py").read_text()
        for name in ("bailing_moe", "minimax_m2", "llama", "qwen2")
    )
    assert "if self.tie_word_embeddings:" in bailing
    assert "bias=(config.use_bias or config.use_qkv_bias)" in bailing
    assert 'if getattr(config, "moe_router_enable_expert_bias", False):' in bailing
    assert "if self.use_routing_bias:" in minimax
    assert "attention_bias = config.qkv_bias" in llama
    assert "if self.qk_norm:" in qwen2
