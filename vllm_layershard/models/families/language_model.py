"""The part of a multimodal model's config.json that is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.sources.config_file import ConfigFile

STEM: Final = "language_model.model.layers"
"""The name that vLLM gives its list of decoder layers."""

TEXT_ONLY: Final = "the vision tower's weights are not counted: the plan is for the language model"
"""The note of every such model."""


def language_model_of(config: ConfigFile) -> ConfigFile:
    """The section that states the language model.

    Raises:
        ModelError: it is missing.
    """
    text = config.section("text_config")
    if text is None:
        config.fail("text_config", "is missing; this architecture states its language model there")
    return text


def within(read: Blueprint, *, tied: bool) -> Blueprint:
    """The language model as a part of the model around it. `tied`: its head is its embedding."""
    return replace(read, stem=STEM, tied=tied, notes=(*read.notes, TEXT_ONLY))
