"""Uniform: one number format for every module that a checkpoint does not leave out."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.ignored import Ignored


class Uniform(NamedTuple):
    """One format for all that is not ignored. `quantises_head`: it is for the head, too."""

    format: Format
    ignored: Ignored
    quantises_head: bool = False

    def linear(self, prefix: str) -> Format | None:
        """The one format, or none where the linear is ignored."""
        return None if self.ignored.linear(prefix) else self.format

    def experts(self, prefix: str) -> Format | None:
        """The one format, or none where the experts are ignored."""
        return None if self.ignored.experts(prefix) else self.format

    def head(self, prefix: str) -> Format | None:
        """None, or as of a linear."""
        return self.linear(prefix) if self.quantises_head else None


def uniform(format: Format, ignored: Ignored, *, quantises_head: bool = False) -> Quantization:
    """The quantisation of a checkpoint that knows one format, called as the format is."""
    return Quantization(format.name, Uniform(format, ignored, quantises_head))
