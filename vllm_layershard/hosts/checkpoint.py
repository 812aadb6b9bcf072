"""The checkpoint that a reload is given: whether its files are whole, and which ones they are."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from vllm.model_executor.model_loader import get_model_loader

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_INDEX = "model.safetensors.index.json"
_PREFIX_BYTES = 8


def checked_checkpoint(vllm_config: VllmConfig, weights_path: str | None) -> dict[str, Any]:
    """What all ranks must have alike of the checkpoint that they are about to load.

    Of a directory: each safetensors file by its length and the digest of its header, each torch
    file by its length. None of them is written into a running model unless all are whole. Of what
    vLLM would stream from elsewhere, its address.

    Raises:
        HostError: a file is missing or cut short.
    """
    where = weights_path or str(vllm_config.model_config.model)
    directory = Path(where)
    if not directory.is_dir():
        directory = _downloaded(vllm_config, where)
    return {file.name: _described(file) for file in _files(directory)} or {"address": where}


def _downloaded(vllm_config: VllmConfig, where: str) -> Path:
    """The directory into which vLLM's loader puts a model of a hub, now rather than half-way."""
    from huggingface_hub import snapshot_download

    model_config, load_config = vllm_config.model_config, vllm_config.load_config
    former = model_config.model, model_config.revision
    revision = model_config.revision if where == str(model_config.model) else None
    model_config.model, model_config.revision = where, revision
    try:
        get_model_loader(load_config).download_model(model_config)
        return Path(
            snapshot_download(
                where,
                revision=revision,
                cache_dir=load_config.download_dir,
                local_files_only=True,
            )
        )
    except Exception as error:
        raise HostError(
            f"{KEY}: {where}: is no directory, and cannot be had as a model of a hub "
            f"({type(error).__name__}: {' '.join(str(error).split())}); give the path of a "
            "checkpoint"
        ) from error
    finally:
        model_config.model, model_config.revision = former


def _files(directory: Path) -> list[Path]:
    """The files with weights, as vLLM chooses them: safetensors where there are any."""
    found = sorted(directory.glob("*.safetensors"))
    _check_index(directory, {file.name for file in found})
    return found or sorted([*directory.glob("*.bin"), *directory.glob("*.pt")])


def _check_index(directory: Path, found: set[str]) -> None:
    index = directory / _INDEX
    if not index.is_file():
        return
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_whole(index, error) from None
    for name in sorted(named - found):
        raise HostError(
            f"{KEY}: {directory / str(name)}: is missing, and {_INDEX} names it; complete the "
            "checkpoint before it is loaded"
        )


def _described(file: Path) -> list[Any]:
    """The bytes of a file, and the digest of its header if it has one."""
    try:
        nbytes = file.stat().st_size
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):  # which holds the header against the length
                return [nbytes, _header_digest(file)]
        with file.open("rb") as opened:
            if opened.read(2) == b"PK":
                zipfile.ZipFile(file).close()  # its directory is at its end
        return [nbytes]
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise _not_whole(file, error) from None


def _header_digest(file: Path) -> str:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_PREFIX_BYTES), "little")
        return hashlib.sha256(opened.read(length)).hexdigest()


def _not_whole(file: Path, error: Exception) -> HostError:
    return HostError(
        f"{KEY}: {file}: cannot be read as weights, or is cut short "
        f"({' '.join(str(error).split())}); no weight was loaded from it; complete the checkpoint"
    )
