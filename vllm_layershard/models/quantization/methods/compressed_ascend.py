"""A compressed-tensors section as vllm-ascend reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.ascend import Ascend
from vllm_layershard.models.quantization.formats.ascend_int4 import AscendInt4
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.split import joined, parts_of
from vllm_layershard.models.quantization.methods.compressed_group import (
    format_of_group,
    forms_of,
)
from vllm_layershard.models.quantization.methods.compressed_tensors import read_compressed_tensors
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.quantization.served.ascend import row_of_experts, row_of_linears
from vllm_layershard.models.quantization.served.row import Row
from vllm_layershard.models.sources.config_file import ConfigFile


def read_on_ascend(section: ConfigFile, architecture: str) -> Quantization:
    """As `read_compressed_tensors`, in vllm-ascend's formats; a refusal where it has no class.

    Raises:
        ModelError: as there.
    """
    return read_compressed_tensors(section, names_of(architecture), _format_of_group)


def _format_of_group(section: ConfigFile, group: ConfigFile) -> Format:
    linears, experts = parts_of(format_of_group(section, group))
    forms = forms_of(section, group)
    return joined(_made(row_of_linears(*forms), linears), _made(row_of_experts(*forms), experts))


def _made(row: Row | str, planned: Format | str) -> Format | str:
    """The format of vllm-ascend's class, under the name that it has elsewhere."""
    if isinstance(row, str) or isinstance(planned, str):
        return row if isinstance(row, str) else planned
    return _MADE[row.scheme](planned.name)


_MADE: Final[Mapping[str, Callable[[str], Format]]] = {
    "W8A8": lambda name: Ascend("W8A8", name, rescaled=True),
    "W8A8_DYNAMIC": lambda name: Ascend("W8A8_DYNAMIC", name),
    "W8A8FP8_DYNAMIC": lambda name: Ascend("W8A8FP8_DYNAMIC", name),
    "W4A16": AscendInt4,
}
"""vllm-ascend's class -> its tensors."""
