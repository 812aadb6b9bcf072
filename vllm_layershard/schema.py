"""Reads the values of our keys, whatever JSON they hold, with pydantic.

Apart from config.py, because the planner's flags need no schema and pydantic takes a while to
import. It judges keys and types only. Bounds stand in config.py alone: a value of good types gets
all its faults in one message, and pydantic would stop at the bounds before the names are read.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Final, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from vllm_layershard.config import KEY, NAME_LISTS, OPTIONS, REMEDIES, LayerShardConfig, few, short
from vllm_layershard.errors import ConfigError
from vllm_layershard.ffn_config import FfnConfig, fault

_HINTS: Final = get_type_hints(LayerShardConfig)
_FIELDS: Final[dict[str, Any]] = {
    field.name: (_HINTS[field.name], ... if field.default is MISSING else field.default)
    for field in fields(LayerShardConfig)
}
_Stated: Final[type[BaseModel]] = create_model(
    "_Stated", __config__=ConfigDict(strict=True, extra="forbid"), **_FIELDS
)
"""The fields of LayerShardConfig, for values of any types."""

_Size: Final = TypeAdapter(int, config=ConfigDict(strict=True))


def validated(value: Any) -> LayerShardConfig:
    """A list of names, or an object with `layers` and options.

    Raises:
        ConfigError: the faults, each naming the key, the value and the remedy.
    """
    if isinstance(value, list):
        value = {"layers": value}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{KEY} = {short(value)}: must be a list of names or an object; "
            f'write for example {{"{KEY}": ["o_proj", "q_b_proj"]}}'
        )
    lists = {key: tuple(names) for key, names in value.items() if isinstance(names, list)}
    value = value | {key: names for key, names in lists.items() if key in NAME_LISTS}
    try:
        stated = _Stated.model_validate(value)
    except ValidationError as error:
        faults = [_fault(detail, value) for detail in error.errors()]
        raise ConfigError("; ".join(few(faults))) from None
    return LayerShardConfig(**dict(stated))


def validated_ffn(value: Any) -> FfnConfig:
    """A whole number of ranks.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    try:
        return FfnConfig(_Size.validate_python(value))
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Input ")
        raise fault(value, what) from None


def _fault(detail: Any, value: dict[str, Any]) -> str:
    """One fault as a sentence: key, value, remedy."""
    path = [str(part) for part in detail["loc"] or [detail["input"]]]  # no loc: an odd key
    key = path[0]
    where = ".".join([KEY, *(part if _is_plain(part) else short(part) for part in path)])
    if key not in OPTIONS:
        return f"{where}: unknown key; the known ones are {', '.join(OPTIONS)}"
    if detail["type"] == "missing":
        return f"{where}: is missing; {REMEDIES[key]}"
    what = str(detail["msg"]).removeprefix("Input ").replace("a valid tuple", "a list")
    return f"{where} = {short(detail.get('input', value))}: {what}; {REMEDIES[key]}"


def _is_plain(part: str) -> bool:
    return part.replace("_", "").isalnum() and len(part) <= 80
