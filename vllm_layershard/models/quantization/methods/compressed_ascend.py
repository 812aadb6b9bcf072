"""A compressed-tensors section as vllm-ascend reads it."""

from __future__ import annotations

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.split import Split, parts_of
from vllm_layershard.models.quantization.methods.compressed_group import (
    format_of_group,
    forms_of,
)
from vllm_layershard.models.quantization.methods.compressed_tensors import read_compressed_tensors
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.quantization.served.ascend import lacks_experts, lacks_linears
from vllm_layershard.models.sources.config_file import ConfigFile


def read_on_ascend(section: ConfigFile, architecture: str) -> Quantization:
    """As `read_compressed_tensors`, with a refusal for each format without a class there.

    Raises:
        ModelError: as there.
    """
    return read_compressed_tensors(section, names_of(architecture), _format_of_group)


def _format_of_group(section: ConfigFile, group: ConfigFile) -> Format:
    linears, experts = parts_of(format_of_group(section, group))
    forms = forms_of(section, group)
    return Split(lacks_linears(*forms) or linears, lacks_experts(*forms) or experts)
