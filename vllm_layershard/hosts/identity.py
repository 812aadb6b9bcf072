"""Which model an engine serves, as far as all ranks that share its layers must agree."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_layershard.bounded_file import AbsentError, UnreadableError, read_bounded
from vllm_layershard.runtime.ranks.checkpoint import Checkpoint, holdings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_OFFICIAL = "consolidated*.safetensors"
_PATTERNS = {
    "auto": (_OFFICIAL, "*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "mistral": (_OFFICIAL,),
    "npcache": ("*.bin", "*.pt"),
    "pt": ("*.pt",),
}
"""By load format: vLLM loads the files of the first pattern that any matches
(model_loader/default_loader.py, `_prepare_weights`). `dummy` loads none."""

_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_MOST_INDEX_BYTES = 64 << 20


def read_as(vllm_config: VllmConfig) -> dict[str, Any]:
    """How the model's checkpoint is read, as plain data."""
    model = vllm_config.model_config
    return {
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "load_format": str(vllm_config.load_config.load_format),
    }


def checkpoint_of(vllm_config: VllmConfig) -> Checkpoint:
    """What this engine will load. Reads a bounded part of its files, and nothing of a hub."""
    model = vllm_config.model_config
    revision = "" if model.revision is None else f" (revision {model.revision})"
    commit = getattr(model.hf_config, "_commit_hash", None)
    load_format = str(vllm_config.load_config.load_format)
    if load_format == "dummy":
        return Checkpoint("random weights", None, {})
    directory = _directory(vllm_config)
    files = None if directory is None else weight_files(directory, load_format)
    return Checkpoint(
        f"{model.model}{revision}", commit, None if files is None else holdings(files)
    )


def _directory(vllm_config: VllmConfig) -> Path | None:
    """Where the checkpoint is on this node; None if it is not, as far as can be told."""
    model = vllm_config.model_config
    if Path(model.model).is_dir():
        return Path(model.model)
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                model.model,
                revision=model.revision,
                cache_dir=vllm_config.load_config.download_dir,
                local_files_only=True,
            )
        )
    except Exception:  # whatever its version raises: vLLM will download it, or say what is wrong
        return None


def weight_files(directory: Path, load_format: str) -> list[Path] | None:
    """The files that vLLM would load; None if they are not all there."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return None
    for pattern in _PATTERNS[load_format]:
        found = [name for name in names if fnmatch(name, pattern)]
        if found:
            break
    else:
        return None
    if found[0].endswith(".safetensors"):
        official = "consolidated" if pattern == _OFFICIAL else "model"
        indexed = _indexed(directory / f"{official}.safetensors.index.json")
        if indexed is not None:
            if not indexed <= set(found):
                return None
            found = sorted(indexed)
    return [directory / name for name in found if not name.endswith(_OF_TRAINING)]


def _indexed(path: Path) -> set[str] | None:
    """The files that an index names; None if there is no index that can be read."""
    try:
        weight_map = json.loads(read_bounded(path, _MOST_INDEX_BYTES))["weight_map"]
        return {str(name) for name in weight_map.values()}
    except (AbsentError, UnreadableError, ValueError, KeyError, TypeError, AttributeError):
        return None
