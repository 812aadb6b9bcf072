"""Which fields of a config its own class takes some values in, and refuses others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from truth.asking import answers_of
from truth.published import PUBLISHED, WITHOUT_A_CLASS
from vllm_layershard.models import FoundModel, Model, model_of
from vllm_layershard.models.sources.config_file import ConfigFile

KINDS = [kind for kind in PUBLISHED if kind not in WITHOUT_A_CLASS]

ASKED = """
import json, sys
import vllm.transformers_utils.configs as own
from transformers import CONFIG_MAPPING
from vllm.transformers_utils.config import _CONFIG_REGISTRY

def class_of(model_type):
    known = _CONFIG_REGISTRY.get(model_type)
    return getattr(own, known) if isinstance(known, str) else known or CONFIG_MAPPING[model_type]

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

    known = {{*place, *own.to_dict(), *getattr(type(own), "__dataclass_fields__", ())}}
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


@cache
def fields_where(wanted: str) -> dict[str, tuple[list[str], list[str]]]:
    """Model type -> fields of the language model, and of what is around it, as `wanted` says.

    It is a condition on `takes(field, value)`: whether the class reads the config with that value.
    """
    asked = {kind: PUBLISHED[kind] for kind in KINDS}
    found: dict[str, tuple[list[str], list[str]]] = answers_of(ASKED.format(wanted=wanted), asked)
    return found


def read(config: Mapping[str, Any]) -> Model:
    """The model as it is planned.

    Raises:
        LayerShardError: it is not planned.
    """
    return model_of(FoundModel("m", "local:m", ConfigFile("config", config)))
