"""Which values a config's own class takes in its fields, and what it makes of a null there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from truth.asking import answers_of
from truth.published import PUBLISHED, WITHOUT_A_CLASS
from vllm_layershard.models import FoundModel, Model, model_of
from vllm_layershard.models.sources.config_file import ConfigFile

KINDS = [kind for kind in PUBLISHED if kind not in WITHOUT_A_CLASS]

CLASSES = """
import json, sys
import vllm.transformers_utils.configs as own
from transformers import CONFIG_MAPPING
from vllm.transformers_utils.config import _CONFIG_REGISTRY

def class_of(model_type):
    known = _CONFIG_REGISTRY.get(model_type)
    return getattr(own, known) if isinstance(known, str) else known or CONFIG_MAPPING[model_type]
"""

ASKED = """
def fields(made, config, within):
    place = config["text_config"] if within else config
    whole = made(**config)
    own = whole.text_config if within else whole

    def takes(field, value):
        changed = {{**place, field: value}}
        try:
            made(**({{**config, "text_config": changed}} if within else changed))
        except Exception:
            return False
        return True

    known = {{*place, *own.to_dict(), "num_hidden_layers"}}
    known |= {{*getattr(type(own), "__dataclass_fields__", ())}}
    known -= {{"model_type", "attribute_map", "sub_configs"}}  # no values of a model
    return sorted(field for field in known if {wanted})

found = {{}}
for model_type, config in json.load(sys.stdin).items():
    made = class_of(model_type)
    within = "text_config" in config
    around = fields(made, config, False) if within else []
    found[model_type] = [fields(made, config, within), around]
print(json.dumps(found))
"""

NULLS = """
def made_of_null(made, config, within, field):
    place = config["text_config"] if within else config
    changed = {**place, field: None}
    try:
        whole = made(**({**config, "text_config": changed} if within else changed))
    except Exception:
        return None
    value = getattr(whole.text_config if within else whole, field, None)
    if hasattr(value, "to_dict"):  # a section
        value = value.to_dict()
    return [str(value).removeprefix("torch.") if field.endswith("dtype") and value else value]

print(json.dumps([
    [made_of_null(class_of(model_type), config, within, field) for within, field in fields]
    for model_type, config, fields in json.load(sys.stdin)
], default=str))
"""


def made_of_nulls(asked: list[tuple[str, Mapping[str, Any], list[tuple[bool, str]]]]) -> list[Any]:
    """Of each model type and config: what its class makes of a null in each of these fields.

    A field is within the language model's section or is not. The class refuses: None; else a list
    of the one value, which is None where the class leaves it so.
    """
    found: list[Any] = answers_of(CLASSES + NULLS, asked)
    return found


@cache
def fields_where(wanted: str) -> dict[str, tuple[list[str], list[str]]]:
    """Model type -> fields of the language model, and of what is around it, as `wanted` says.

    It is a condition on `takes(field, value)`: whether the class reads the config with that value.
    """
    asked = {kind: PUBLISHED[kind] for kind in KINDS}
    found: dict[str, tuple[list[str], list[str]]] = answers_of(
        CLASSES + ASKED.format(wanted=wanted), asked
    )
    return found


def read(config: Mapping[str, Any]) -> Model:
    """The model as it is planned.

    Raises:
        LayerShardError: it is not planned.
    """
    return model_of(FoundModel("m", "local:m", ConfigFile("config", config)))
