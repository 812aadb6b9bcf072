"""What a shell offers behind `--model` and `--hardware`."""

from __future__ import annotations

from pathlib import Path


def complete_model(incomplete: str) -> list[str]:
    """Bundled models by their short names, and what lies on the disk."""
    from vllm_layershard.models import bundled_names

    names = (name.partition("/")[2] for name in bundled_names())
    return [name for name in names if name.startswith(incomplete)] + _paths(incomplete)


def complete_hardware(incomplete: str) -> list[str]:
    """Profiles, and files."""
    from vllm_layershard.estimate import profile_names

    names = [name for name in profile_names() if name.startswith(incomplete)]
    return names + [path for path in _paths(incomplete) if path.endswith((".json", "/"))]


def _paths(incomplete: str) -> list[str]:
    """Directories with a slash, and JSON files, that begin like this."""
    if not incomplete:
        return []
    folder, _, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(f"{folder}/" if "/" in incomplete else ".").iterdir())
        return [
            f"{incomplete[: len(incomplete) - len(start)]}{path.name}{'/' if path.is_dir() else ''}"
            for path in found
            if path.name.startswith(start)
            and path.name.isprintable()
            and (path.is_dir() or path.suffix == ".json")
        ]
    except OSError:
        return []
