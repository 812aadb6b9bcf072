"""Files beside a config.json, each read when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from vllm_layershard.bounded_file import AbsentError, UnreadableError, read_bounded
from vllm_layershard.errors import ModelError

HF_QUANT: Final = "hf_quant_config.json"
"""Where Model Optimizer states a quantisation, beside what config.json says of it or alone."""

DESCRIPTION: Final = "quant_model_description.json"
"""Where ModelSlim states the precision of every tensor, for vllm-ascend."""

MAX_DESCRIPTION_BYTES: Final = 24 << 20
"""DeepSeek-V3's 58 layers of 256 experts make some 12 MB."""

BY_HAND: Final = ("quantize_config.json", "quant_config.json", "quantization_config.json")
"""Where older tools state a quantisation: vLLM reads it only where `--quantization` names one."""


class Contents(NamedTuple):
    """The bytes of a file, and its name for the messages."""

    raw: bytes
    where: str


Beside = Callable[[str, int], Contents | None]
"""From a file's name and the most bytes that it may have to what it holds; None: it is not there.

Raises:
    ModelError: it is there and cannot be read, or is larger.
    UnknownModelError: nobody can say whether it is there.
"""


def nothing_beside(file: str, limit: int) -> Contents | None:
    """Nothing lies beside a config that stands alone."""
    return None


def beside_in(directory: Path) -> Beside:
    """What lies in a directory."""
    return partial(_read, directory)


def _read(directory: Path, file: str, limit: int) -> Contents | None:
    path = directory / file
    try:
        return Contents(read_bounded(path, limit), str(path))
    except AbsentError:
        return None
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}") from None


def beside_on_hub(name: str, revision: str) -> Beside:
    """What a revision of a repository on the Hub holds."""
    return partial(_fetch, name, revision)


def _fetch(name: str, revision: str, file: str, limit: int) -> Contents | None:
    from vllm_layershard.models.sources.hub import NoSuchFileError, fetch

    try:
        fetched = fetch(name, revision, file, limit)
    except NoSuchFileError:
        return None
    return Contents(fetched.body, f"{name}: {file} (Hub)")
