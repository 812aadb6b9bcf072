"""The checkpoint that a reload is given: whether its files are whole, and which ones they are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.identity import weight_files
from vllm_layershard.runtime.ranks.checkpoint import holdings

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def checked_checkpoint(vllm_config: VllmConfig, weights_path: str | None) -> dict[str, Any]:
    """What all ranks must have alike of the checkpoint that they are about to load.

    By file what it holds, told in a few bytes: see the note in runtime/ranks/checkpoint.py. Nothing
    is written into a running model unless all files are whole.

    Raises:
        HostError: a file is missing or cut short.
    """
    where = weights_path or str(vllm_config.model_config.model)
    load_format = str(vllm_config.load_config.load_format)
    if load_format == "dummy":
        return {"random weights": None}
    directory = Path(where)
    if not directory.is_dir():
        directory = _downloaded(vllm_config, where)
    files = weight_files(directory, load_format)
    if files is None:
        raise HostError(
            f"{KEY}: {directory}: has no weights that vLLM would load, or not all that its index "
            "names; complete the checkpoint before it is loaded"
        )
    for file in files:
        _check_whole(file)
    return dict(holdings(files))


def _downloaded(vllm_config: VllmConfig, where: str) -> Path:
    """The directory into which vLLM's loader puts a model of a hub, now rather than half-way."""
    from huggingface_hub import snapshot_download
    from vllm.model_executor.model_loader import get_model_loader

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


def _check_whole(file: Path) -> None:
    """Hold the header of a safetensors file against its length, and find the end of an archive."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):
                return
        with file.open("rb") as opened:
            if opened.read(2) == b"PK":
                zipfile.ZipFile(file).close()  # its directory is at its end
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise _not_whole(file, error) from None


def _not_whole(file: Path, error: Exception) -> HostError:
    return HostError(
        f"{KEY}: {file}: cannot be read as weights, or is cut short "
        f"({' '.join(str(error).split())}); no weight was loaded from it; complete the checkpoint"
    )
