"""The entry point `layershard`: installs layer sharding in a process that was asked for it.

vLLM calls `register` in every process, mostly before it has a configuration at hand. Off means
off: nothing is imported or patched unless the key `layer_sharding` is found in what this process
was given, which is looked for in this order:

1. `VLLM_PLUGINS` names `layershard`: always install (each patch still is inert without the key);
2. the command line, or the file that its `--config` names, speaks of the key;
3. the engine arguments or the VllmConfig on behalf of which vLLM is loading plugins hold it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from inspect import getattr_static
from pathlib import Path
from typing import Any

NAME = "layershard"
KEY = "layer_sharding"

_FRAMES = 12
"""How far up the call stack the configuration is looked for: vLLM's own calls are 3 to 6 deep."""


def register() -> None:
    """Install layer sharding if this process was asked for it. Called by vLLM; re-entrant.

    Raises:
        HostError: it was asked for, and this version of vLLM lacks a symbol that it needs.
    """
    if _is_named() or _is_on_command_line(sys.argv[1:]) or _is_in_hand():
        from vllm_layershard.hosts.install import install

        install()


def _is_named() -> bool:
    return NAME in os.environ.get("VLLM_PLUGINS", "").split(",")


def _is_on_command_line(arguments: list[str]) -> bool:
    files = [
        argument.partition("=")[2] or following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if argument.partition("=")[0] == "--config"
    ]
    return any(map(_mentions_key, [*arguments, *(_text_of(Path(file)) for file in files)]))


def _mentions_key(text: str) -> bool:
    return KEY in text.replace("-", "_")


def _text_of(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""  # vLLM itself says so when it reads the file


def _is_in_hand() -> bool:
    return any(
        isinstance(extra, dict) and KEY in extra
        for held in _held_by_callers()
        # Static: the worker's wrapper forwards unknown names to a worker that is not there yet.
        if (extra := getattr_static(held, "additional_config", None)) is not None
    )


def _held_by_callers() -> Iterator[Any]:
    """`self` (EngineArgs) and `vllm_config` (engine core, worker) of the calling frames."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        for name in ("self", "vllm_config"):
            if name in frame.f_locals:
                yield frame.f_locals[name]
        if frame.f_back is None:
            return
        frame = frame.f_back
