"""Reads `quant_model_description.json`, where ModelSlim states every weight's precision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Final

from vllm_layershard.bounded_file import AbsentError, UnreadableError, read_bounded
from vllm_layershard.errors import ModelError
from vllm_layershard.models.scanner import Scanner, decoded
from vllm_layershard.models.sources.config_file import ConfigFile

DESCRIPTION: Final = "quant_model_description.json"
KINDS: Final = "kinds"
"""The key under which what was read stands in a config's `quantization_config`."""

MAX_DESCRIPTION_BYTES: Final = 24 << 20
"""DeepSeek-V3's 58 layers of 256 experts make some 12 MB."""

_LATER_EXPERT = re.compile(r"\.experts\.[1-9]")


def with_description(config: ConfigFile, directory: Path) -> ConfigFile:
    """The config with what the file beside it says, where it states no method of its own.

    Raises:
        ModelError: the file cannot be read, or is not a description.
    """
    section = config.get("quantization_config")
    stated = section.get("quant_method") if isinstance(section, dict) else section
    if stated not in (None, "ascend"):
        return config
    path = directory / DESCRIPTION
    try:
        kinds = parse_description(read_bounded(path, MAX_DESCRIPTION_BYTES), str(path))
    except AbsentError:
        return config
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}") from None
    read = {"quant_method": "ascend", KINDS: kinds}
    return config._replace(values={**config.values, "quantization_config": read})


def parse_description(raw: bytes, where: str) -> Mapping[str, str]:
    """Module -> precision of its weight, without experts beyond the first of each layer.

    Raises:
        ModelError: not JSON, or not an object.
    """
    scanner = Scanner(decoded(raw, where), where)
    del raw  # the caller keeps no reference: the bytes and the text are not held together
    kinds: dict[str, str] = {}
    for name in scanner.names():
        if scanner.peek() != '"':
            scanner.skip()
            continue
        for weight, kind in chain([(name, scanner.string())], scanner.run()):
            if weight.endswith(".weight") and not _LATER_EXPERT.search(weight):
                kinds[weight.removesuffix(".weight")] = intern(kind)
    scanner.end()
    return kinds
