"""Reads `quant_model_description.json`, where ModelSlim states every weight's precision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from sys import intern
from typing import Final

from vllm_layershard.models.scanner import Scanner, decoded
from vllm_layershard.models.sources.config_file import ConfigFile

KINDS: Final = "kinds"
"""The key under which what was read stands in a config's `quantization_config`."""

_LATER_EXPERT = re.compile(r"\.experts\.[1-9]")


def described(raw: bytes, where: str) -> ConfigFile:
    """What a description says, in the shape of a `quantization_config`.

    Raises:
        ModelError: it is too large, or is not a description.
    """
    return ConfigFile(where, {"quant_method": "ascend", KINDS: parse_description(raw, where)})


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
