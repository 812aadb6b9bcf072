"""Registry: which family plans which architecture. Fails closed."""

from __future__ import annotations

from collections.abc import Callable

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models import (
    bailing_moe,
    dense,
    glm4_moe,
    gpt_oss,
    minimax_m2,
    mixtral,
    mla,
    qwen3_moe,
)
from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.decoder import DecoderModel
from vllm_layershard.models.source import Found, find

Builder = Callable[[str, ConfigFile], Blueprint]
"""(architecture, config) -> the model's blueprint."""

_FAMILIES: dict[str, tuple[frozenset[str], Builder]] = {
    architecture: (model_types, family.build)
    for family in (mla, dense, qwen3_moe, mixtral, glm4_moe, minimax_m2, bailing_moe, gpt_oss)
    for architecture, model_types in family.SERVES.items()
}


def supported() -> tuple[str, ...]:
    """The architectures that can be planned."""
    return tuple(_FAMILIES)


def load_model(name: str) -> DecoderModel:
    """Find a model by path or name and read it.

    Raises:
        UnknownModelError: nothing of that name, or an architecture without a family.
        ModelError: its config.json is broken or inconsistent.
    """
    return model_of(find(name))


def model_of(found: Found) -> DecoderModel:
    """Read a model from a config that was found."""
    config = found.config
    architectures = config.strings("architectures")
    model_type = config.string("model_type")
    known = ", ".join(supported())
    if not architectures:
        config.fail("architectures", f"is missing; supported are {known}")
    architecture = architectures[0]
    if architecture not in _FAMILIES:
        raise UnknownModelError(
            f"{config.where}: architecture {architecture!r} (model_type {model_type!r}) is not "
            f"known to the planner, and its bytes are not guessed; supported are {known}"
        )
    model_types, build = _FAMILIES[architecture]
    if model_type not in model_types:
        raise UnknownModelError(
            f"{config.where}: model_type {model_type!r} with architecture {architecture!r} is not "
            f"known to the planner; expected {' or '.join(sorted(model_types))}"
        )
    return DecoderModel(found.name, found.source, architecture, build(architecture, config))
