"""Reads gpt-oss's own method, mxfp4."""

from __future__ import annotations

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.mxfp4 import Mxfp4
from vllm_layershard.models.quantization.ignored import Ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.sources.config_file import ConfigFile


def read_mxfp4(section: ConfigFile, names: Names) -> Quantization:
    """The method has no settings that vLLM reads."""
    return uniform(Mxfp4(), Ignored())
