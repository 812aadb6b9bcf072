"""Group: weights that a config quantises alike, with their activations."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.quantization.served.form import Form
from vllm_layershard.models.sources.config_file import ConfigFile


class Group(NamedTuple):
    """What a group states of its weights, and of their activations; None: these stay wide."""

    stated: ConfigFile
    weights: Form
    inputs: Form | None

    @property
    def static(self) -> bool:
        """Whether the checkpoint stores scales of activations."""
        return self.inputs is not None and not self.inputs.dynamic
