"""Which model an engine serves, as far as engines that load it each for itself must agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_WEIGHTS = (".safetensors", ".bin", ".pt", ".npz", ".json")


def identity_of(vllm_config: VllmConfig) -> dict[str, Any]:
    """The model as plain data: where it comes from, which version of it, and how it is read.

    A layer comes from one replica and the next from another: a checkpoint that was written anew
    between the starts of two replicas would be mixed with what it was before. Nothing that is as
    quick to compare as the files' sizes and times would tell.
    """
    model = vllm_config.model_config
    return {
        "model": model.model,
        "revision": model.revision,
        "commit": getattr(model.hf_config, "_commit_hash", None),
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "load_format": str(vllm_config.load_config.load_format),
        "files": _files(Path(model.model)),
    }


def _files(directory: Path) -> dict[str, list[int]]:
    """Size and time of writing (ns) of a local checkpoint's files; {} of one on a hub."""
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    return {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns]
        for file in found
        if file.suffix in _WEIGHTS and file.is_file()
    }
