"""The part of a multimodal model's config.json that is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.sources.config_file import ConfigFile

STEM: Final = "language_model.model.layers"
"""The name that vLLM gives its list of decoder layers."""

_DTYPES: Final = ("dtype", "torch_dtype")

TEXT_ONLY: Final = (
    "the vision tower's weights are not counted, and nobody looks whether vLLM can split it over "
    "tensor-parallel ranks: the plan is for the language model"
)
"""The note of every such model."""


def language_model_of(config: ConfigFile) -> ConfigFile:
    """The section that states the language model, with the dtype that vLLM runs the whole in.

    Raises:
        ModelError: it is missing, or the dtype is not known.
    """
    text = config.section("text_config")
    if text is None:
        config.fail("text_config", "is missing; this architecture states its language model there")
    return _with_dtype(text, (config, text, config.section("vision_config")))


def _with_dtype(text: ConfigFile, places: tuple[ConfigFile | None, ...]) -> ConfigFile:
    """With the dtype of the first place that states one.

    Source: vLLM 0.32, transformers_utils/model_arch_config_convertor.py, `get_torch_dtype`.
    """
    for place in places:
        stated = next((key for key in _DTYPES if place and place.get(key) is not None), None)
        if place is not None and stated is not None:
            dtype_of(place)  # it names the place where the dtype is not known
            others = {key: value for key, value in text.values.items() if key not in _DTYPES}
            return text._replace(values={**others, stated: place.get(stated)})
    return text


def within(read: Blueprint, *, tied: bool) -> Blueprint:
    """The language model as a part of the model around it. `tied`: its head is its embedding."""
    return replace(read, stem=STEM, tied=tied, notes=(*read.notes, TEXT_ONLY))
