"""Files beside a config.json, each read when somebody asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from vllm_layershard.bounded_file import AbsentError, UnreadableError, read_bounded
from vllm_layershard.errors import ModelError

HF_QUANT: Final = "hf_quant_config.json"
"""Where Model Optimizer states a quantisation, beside what config.json says of it or alone."""

PARAMS: Final = "params.json"
"""The config of Mistral's own format."""

DESCRIPTION: Final = "quant_model_description.json"
"""Where ModelSlim states the precision of every tensor, for vllm-ascend."""

MAX_DESCRIPTION_BYTES: Final = 24 << 20
"""DeepSeek-V3's 58 layers of 256 experts make some 12 MB."""

READ_WITH_A_FLAG: Final = (
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
"""Where older tools state a quantisation: vLLM reads it only where `--quantization` names one.
Source: vLLM 0.32, `get_config_filenames` of auto_gptq.py, auto_awq.py and inc.py."""

BY_HAND: Final = (
    *READ_WITH_A_FLAG,
    "quant_model_description_w8a8.json",
    "quant_model_description_w8a8_dynamic.json",
    "recipe.yaml",
)
"""Files that state a quantisation which no server reads by itself; others of a directory are found
by their names. ModelSlim's carry the kind at times; vllm-ascend 02f6f8f reads the name without
(quantization/modelslim_config.py). llm-compressor leaves its recipe."""


_MAX_NAMES: Final = 1 << 14
"""More files than any model's directory holds."""


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


class Directory:
    """What lies in a directory."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, file: str, limit: int) -> Contents | None:
        """As `Beside`."""
        path = self.path / file
        try:
            return Contents(read_bounded(path, limit), str(path))
        except AbsentError:
            return None
        except UnreadableError as error:
            raise ModelError(f"{path}: {error}") from None

    def names(self) -> list[str]:
        """What lies there, in the order of the names; of very many the first it is told of.

        Raises:
            ModelError: the directory cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                return sorted(
                    entry.name for entry, _ in zip(entries, range(_MAX_NAMES), strict=False)
                )
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def all_names(self) -> list[str]:
        """What lies there, and in its folders, where they can be read. Hidden ones are left out.

        Raises:
            ModelError: the directory cannot be read.
        """
        names = self.names()
        for folder, folders, files in os.walk(self.path):
            within = os.path.relpath(folder, self.path)
            folders[:] = [name for name in folders if not name.startswith(".")]
            if within != os.curdir:
                names += [f"{within}/{name}" for name in (*folders, *files)]
            if len(names) > _MAX_NAMES:
                break
        return names


class Repository:
    """What a revision of a repository on the Hub holds."""

    __slots__ = ("name", "revision")

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.revision = name, revision

    def __call__(self, file: str, limit: int) -> Contents | None:
        """As `Beside`."""
        from vllm_layershard.models.sources.hub import NoSuchFileError, fetch

        try:
            fetched = fetch(self.name, self.revision, file, limit)
        except NoSuchFileError:
            return None
        return Contents(fetched.body, f"{self.name}: {file} (Hub)")

    def names(self) -> list[str]:
        """Its files but those in folders. The Hub is asked for the list.

        Raises:
            UnknownModelError: it cannot be reached, or does not say.
        """
        return [file for file in self.all_names() if "/" not in file]

    def all_names(self) -> list[str]:
        """Its files, with those in folders.

        Raises:
            UnknownModelError: as for `names`.
        """
        from vllm_layershard.models.sources.hub import list_files

        return sorted(list_files(self.name, self.revision))


def beside_in(directory: Path) -> Beside:
    """What lies in a directory."""
    return Directory(directory)


def names_in(beside: Beside) -> list[str]:
    """The names of the files in a directory; of the Hub's none, which no request is spent on."""
    return beside.names() if isinstance(beside, Directory) else []


def listed(beside: Beside, *, deep: bool = False) -> list[str] | None:
    """The names of the files there; `deep`: in folders too. None where nothing can list them.

    Raises:
        ModelError: a directory cannot be read.
        UnknownModelError: the Hub cannot be reached, or does not say.
    """
    if not isinstance(beside, (Directory, Repository)):
        return None
    return beside.all_names() if deep else beside.names()


def beside_on_hub(name: str, revision: str) -> Beside:
    """What a revision of a repository on the Hub holds."""
    return Repository(name, revision)
