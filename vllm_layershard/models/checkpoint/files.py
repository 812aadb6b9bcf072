"""Checkpoint: the tensors of a directory's safetensors files, from their headers alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_layershard.bounded_file import (
    AbsentError,
    UnreadableError,
    is_absent,
    opened,
    read_bounded,
)
from vllm_layershard.errors import ModelError
from vllm_layershard.models.checkpoint.safetensors import (
    PREFIX_BYTES,
    Stored,
    header_bytes,
    parse_header,
)
from vllm_layershard.models.checkpoint.weight_map import (
    INDEX,
    MAX_FILES,
    MAX_INDEX_BYTES,
    SINGLE,
    parse_weight_map,
)

MAX_TENSORS: Final = 1 << 18
MAX_HEADERS_BYTES: Final = 48 << 20
"""Of all files together: what keeps the process small. Kimi-K2 has 140,000 tensors in 18 MB."""


@dataclass(frozen=True, slots=True)
class Header:
    """The raw header of a file, and how many bytes of data follow it."""

    raw: bytes
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model's files store; `tensors` by name."""

    files: tuple[str, ...]
    tensors: Mapping[str, Stored]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class MissingFilesError(ModelError):
    """The index names files that are not there."""


_CONSOLIDATED: Final = "consolidated"
"""How the files of Mistral's own layout begin."""


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint in a directory, None where it holds no safetensors files.

    Raises:
        MissingFilesError: the index names files that are not there.
        ModelError: a file cannot be read, or is broken.
    """
    counts = _counts(directory)
    if not counts:
        return None
    missing = [name for name in counts if is_absent(directory / name)]
    if missing:
        raise MissingFilesError(
            f"{directory}: {len(missing)} of {len(counts)} files of the checkpoint are missing, "
            f"such as {missing[0]}; {remedy(directory)}"
        )
    return gather(
        counts,
        lambda name: _read_header(directory / name),
        lambda name: str(directory / name),
        remedy(directory),
    )


def read_consolidated(directory: Path) -> Checkpoint | None:
    """The checkpoint in Mistral's own layout in a directory; None where there is none.

    Raises:
        ModelError: a file cannot be read, or is broken.
    """
    names = [name for name in _names(directory) if name.startswith(_CONSOLIDATED)]
    if not names:
        return None
    return gather(
        dict.fromkeys(names),
        lambda name: _read_header(directory / name),
        lambda name: str(directory / name),
        remedy(directory),
    )


def remedy(directory: Path) -> str:
    """What to do about a broken checkpoint."""
    return f"download it again, or plan from the config alone: --model {directory / 'config.json'}"


def gather(
    counts: Mapping[str, int | None],
    header_of: Callable[[str], Header],
    where: Callable[[str], str],
    remedy: str,
) -> Checkpoint:
    """Read the header of every file; `counts` has the tensors that an index puts into each.

    Raises:
        ModelError: a header is broken, a tensor is in two files, a file disagrees with the index,
            or all together is more than is read.
    """
    tensors: dict[str, Stored] = {}
    total = 0
    collects = gc.isenabled()
    gc.disable()  # nothing dies here, and looking for it takes a third of the time
    try:
        for name, count in counts.items():
            header = header_of(name)
            total += len(header.raw)
            if total > MAX_HEADERS_BYTES:
                raise ModelError(
                    f"{where(name)}: with it, headers exceed {MAX_HEADERS_BYTES:,} bytes"
                )
            before = len(tensors)
            _add(tensors, parse_header(header.raw, header.data_bytes, where(name)), where(name))
            found = len(tensors) - before
            if count is not None and found != count:
                raise ModelError(
                    f"{where(name)}: holds {found:,} tensors, the index names {count:,} of it"
                )
    except MissingFilesError:
        raise
    except ModelError as error:
        raise ModelError(f"{error}; {remedy}") from None
    finally:
        if collects:
            gc.enable()
    return Checkpoint(tuple(counts), tensors)


def _add(tensors: dict[str, Stored], found: Iterable[Stored], where: str) -> None:
    for tensor in found:
        if tensor.name in tensors:
            raise ModelError(f"{where}: tensor {tensor.name[:200]!r} is in an earlier file, too")
        tensors[tensor.name] = tensor
        if len(tensors) > MAX_TENSORS:
            raise ModelError(f"{where}: with it, tensors exceed {MAX_TENSORS:,}")


def _counts(directory: Path) -> dict[str, int | None]:
    """The files, with the number of tensors that the index names of each, or None without one."""
    index = directory / INDEX
    try:
        return dict(parse_weight_map(read_bounded(index, MAX_INDEX_BYTES), str(index)))
    except AbsentError:
        pass
    except UnreadableError as error:
        raise ModelError(f"{index}: {error}; {remedy(directory)}") from None
    except ModelError as error:
        raise ModelError(f"{error}; {remedy(directory)}") from None
    names = _names(directory)
    if SINGLE in names:
        names = [SINGLE]
    # Mistral publishes its own layout beside the usual one.
    return dict.fromkeys(name for name in names if not name.startswith(_CONSOLIDATED))


def _names(directory: Path) -> list[str]:
    try:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    except OSError as error:
        raise ModelError(f"{directory}: cannot be read: {error.strerror or error}") from None
    if len(names) > MAX_FILES:
        raise ModelError(f"{directory}: holds more than {MAX_FILES:,} safetensors files")
    return names


def _read_header(path: Path) -> Header:
    try:
        with opened(path) as file:
            length = header_bytes(file.read(PREFIX_BYTES), file.nbytes, str(path))
            raw = file.read(length)
            file.require_unchanged()
            return Header(raw, file.nbytes - PREFIX_BYTES - length)
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}") from None
