"""A config.json of every model type that is planned, of few layers, and the same with changes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from truth import stated
from truth.compare import CONFIGS

WITHOUT_A_CLASS = ("bailing_moe", "bailing_moe_v2")
"""The class comes with the checkpoint."""

LAYERS = 8


def published() -> Iterator[dict[str, Any]]:
    """A config of every model type that is planned, the first of each."""
    seen: set[str] = set()
    bundled = [json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))]
    others = [value for value in vars(stated).values() if isinstance(value, Mapping)]
    for config in (*bundled, *map(dict, others)):
        if "architectures" in config and config["model_type"] not in seen:
            seen.add(config["model_type"])
            yield few_layers({key: value for key, value in config.items() if key != "auto_map"})


def few_layers(config: dict[str, Any]) -> dict[str, Any]:
    """Eight of them, so that all kinds are there."""
    if "text_config" in config:
        return config | {"text_config": few_layers(dict(config["text_config"]))}
    for key in ("num_hidden_layers", "num_layers"):
        if key in config:
            config[key] = LAYERS
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:LAYERS]
    return config


PUBLISHED = {config["model_type"]: config for config in published()}


def without(config: Mapping[str, Any], field: str, within: bool) -> dict[str, Any]:
    place = config["text_config"] if within else config
    left = {key: value for key, value in place.items() if key != field}
    return {**config, "text_config": left} if within else left


def put(config: Mapping[str, Any], field: str, within: bool, value: Any) -> dict[str, Any]:
    place = {**(config["text_config"] if within else config), field: value}
    return {**config, "text_config": place} if within else place
