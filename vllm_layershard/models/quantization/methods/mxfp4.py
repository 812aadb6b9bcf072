"""Reads the method mxfp4: gpt-oss's own, and that of other models."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.mxfp4 import Mxfp4
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.config_file import ConfigFile


class Routed(NamedTuple):
    """One format for the routed experts of every layer, and for nothing else."""

    format: Format

    def linear(self, prefix: str) -> Format | None:
        """None: vLLM has no such kernel for linears."""
        return None

    def experts(self, prefix: str) -> Format | None:
        """The one format."""
        return self.format

    def head(self, prefix: str) -> Format | None:
        """None."""
        return None


def read_mxfp4(section: ConfigFile, names: Names) -> Quantization:
    """The method has no settings that vLLM reads.

    Source: vLLM 0.32, quantization/mxfp4.py, `Mxfp4Config` and `GptOssMxfp4Config`.
    """
    found = Mxfp4()
    return Quantization(found.name, Routed(found))
