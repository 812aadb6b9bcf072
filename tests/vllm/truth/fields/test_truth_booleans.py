"""What is neither true nor false is refused in each field in which the class refuses it.

Of every config that is planned, each field that is stated or that its class has becomes true,
false, 1 and "true" in turn, and its class is asked to read it. Elsewhere vLLM's models ask no more
than whether it counts as true.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from truth.asking import answers_of
from truth.published import PUBLISHED, WITHOUT_A_CLASS, put
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment, FoundModel, model_of
from vllm_layershard.models.families.booleans import _AROUND, _BY_THE_CLASS, _CONDITIONS
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import ParallelLayout

ASKED = """
import json, sys
import vllm.transformers_utils.configs as own
from transformers import CONFIG_MAPPING
from vllm.transformers_utils.config import _CONFIG_REGISTRY

def class_of(model_type):
    known = _CONFIG_REGISTRY.get(model_type)
    return getattr(own, known) if isinstance(known, str) else known or CONFIG_MAPPING[model_type]

def booleans(made, config, within):
    place = config["text_config"] if within else config
    whole = made(**config)
    own = whole.text_config if within else whole

    def takes(field, value):
        changed = {**place, field: value}
        try:
            made(**({**config, "text_config": changed} if within else changed))
        except Exception:
            return False
        return True

    fields = {*place, *own.to_dict(), *getattr(type(own), "__dataclass_fields__", ())}
    return sorted(
        field
        for field in fields
        if field not in ("model_type", "attribute_map", "sub_configs")  # no values of a model
        and not takes(field, 1)
        and not takes(field, "true")
        and takes(field, True)
        and takes(field, False)
    )

found = {}
for model_type, config in json.load(sys.stdin).items():
    made = class_of(model_type)
    within = "text_config" in config
    around = booleans(made, config, False) if within else []
    found[model_type] = [booleans(made, config, within), around]
print(json.dumps(found))
"""

KINDS = [kind for kind in PUBLISHED if kind not in WITHOUT_A_CLASS]


@cache
def booleans() -> dict[str, tuple[list[str], list[str]]]:
    """Model type -> fields that are true or false: of the language model, and around it."""
    found: dict[str, tuple[list[str], list[str]]] = answers_of(
        ASKED, {kind: PUBLISHED[kind] for kind in KINDS}
    )
    return found


def read(config: Mapping[str, Any]) -> tuple[str, object]:
    """What is said against it; nothing where it is planned, and then what a rank holds of it."""
    try:
        model = model_of(FoundModel("m", "local:m", ConfigFile("config", config)))
    except LayerShardError as error:
        return str(error), None
    return "", model.weight_bytes(Deployment(ParallelLayout()), 0)


def said(config: Mapping[str, Any]) -> str:
    return read(config)[0]


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
            assert read(put(config, field, within, value)) == read(plain), field


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
