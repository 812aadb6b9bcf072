"""The entry point `layershard`: installs layer sharding in a process that was asked for it.

vLLM calls `register` in every process, mostly before it has a configuration at hand. Off means
off: nothing is imported or patched unless one of our keys, `layer_sharding` or
`denseffn_tensor_parallel_size`, is found in what this process was given, which is looked for in
this order:

1. `VLLM_PLUGINS` names `layershard` too: always install (each patch is inert without a key);
2. the command line, or the YAML file that its `--config` names, speaks of a key;
3. the engine arguments or the VllmConfig on behalf of which vLLM is loading plugins hold one.

A misspelt key there would serve unsharded without a word, and an option beside the key would be
lost: both are warned of, once.

`VLLM_PLUGINS` is one list of all that loads, the platform's plugin too. Where it leaves out
`layershard`, nothing here runs, and no message can tell.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import getattr_static
from pathlib import Path
from typing import Any

NAME = "layershard"
KEY = "layer_sharding"
FFN_KEY = "denseffn_tensor_parallel_size"

_KEYS = {KEY, FFN_KEY}

_FRAMES = 12
"""How far up the call stack the configuration is looked for: vLLM's own calls are 3 to 6 deep."""

_CONFIG_SUFFIXES = (".yaml", ".yml")
"""What vLLM takes for `--config`."""

_MOST_CONFIG_BYTES = 1 << 20

_warned = False


def register() -> None:
    """Install layer sharding if this process was asked for it. Called by vLLM; re-entrant.

    Raises:
        HostError: a key was given, and this version of vLLM lacks a symbol that it needs.
    """
    if _is_in_hand() or _KEYS & _keys_on_command_line(sys.argv[1:]):
        from vllm_layershard.hosts.patches import install

        install()
    elif _is_named() or _is_on_command_line(sys.argv[1:]):
        from vllm_layershard.hosts.patches import install_what_there_is

        install_what_there_is()
    with suppress(Exception):  # whatever a configuration holds, looking at it does no harm
        _warn_of_near_keys(sys.argv[1:])


def _warn_of_near_keys(arguments: list[str]) -> None:
    """Say once that a key was probably meant for ours.

    vLLM's child processes inherit the command line and are handed the configuration of which the
    front end has spoken: there only engine arguments that they make themselves are looked at.
    """
    global _warned
    if _warned:
        return
    top = _top_keys(arguments)
    given = top | _keys_in_files(arguments)
    parent = sys.modules.get("multiprocessing.process")
    if parent is not None and parent.parent_process() is not None:
        given = top = _keys_in_hand("self") - given
    else:
        held = _keys_in_hand("self", "vllm_config")
        given, top = given | held, top | held
    if not given - _KEYS:
        return
    from vllm_layershard.near_keys import lost_options, near_options, slips

    for said in (*slips(given), lost_options(top), near_options(top)):
        if said:
            import logging

            _warned = True
            logging.getLogger(f"vllm.{__name__}").warning("%s", said)  # vLLM's format, once set


def _keys_on_command_line(arguments: list[str]) -> set[str]:
    return _top_keys(arguments) | _keys_in_files(arguments)


def _top_keys(arguments: list[str]) -> set[str]:
    """Top-level keys of `--additional-config`."""
    found: set[str] = set()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, _, value = argument.partition("=")
        option, _, dotted = flag.partition(".")
        option = option.replace("_", "-")
        if option == "--additional-config" and dotted:
            found.add(dotted.partition(".")[0].rstrip("+"))
        elif option == "--additional-config":
            found |= _keys_of(value or following)
    return found


def _keys_in_files(arguments: list[str]) -> set[str]:
    """Keys of every level, found by their looks, in the file of `--config`."""
    found: set[str] = set()
    for file in _config_files(arguments):
        found |= _keys_in_file(_text_of(file))
    return found


def _keys_of(text: str) -> set[str]:
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return set()  # vLLM itself says so
    return set(value) if isinstance(value, dict) else set()


def _keys_in_file(text: str) -> set[str]:
    """Whatever looks like a key behind `additional-config`: to read YAML takes another library."""
    import re

    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    behind = re.split(r"additional[-_]config", "\n".join(lines), maxsplit=1)[1:]
    return {
        key
        for part in behind
        for key in re.findall(r"(?<![\w-])([A-Za-z][\w-]*+)[\"']?\s*+:", part)
    }


def _is_named() -> bool:
    return NAME in os.environ.get("VLLM_PLUGINS", "").split(",")


def _is_on_command_line(arguments: list[str]) -> bool:
    texts = [_text_of(file) for file in _config_files(arguments)]
    return any(map(_mentions_a_key, [*arguments, *texts]))


def _config_files(arguments: list[str]) -> list[Path]:
    return [
        Path(argument.partition("=")[2] or following)
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if argument.partition("=")[0] == "--config"
    ]


def _mentions_a_key(text: str) -> bool:
    plain = text.replace("-", "_")
    return any(key in plain for key in _KEYS)


def _text_of(file: Path) -> str:
    """A small regular YAML file's text; "" for all else, which may be another program's.

    A pipe, a device or the standard input is not even opened: whoever else reads it needs it whole.
    """
    if file.suffix not in _CONFIG_SUFFIXES:
        return ""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return ""
        with open(file, "rb", opener=_without_blocking) as opened:
            raw = opened.read(_MOST_CONFIG_BYTES + 1)
    except (OSError, ValueError):
        return ""  # vLLM itself says so when it reads the file
    return raw.decode(errors="replace") if len(raw) <= _MOST_CONFIG_BYTES else ""


def _without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_in_hand() -> bool:
    configs = _configs_in_hand("self", "vllm_config")
    return any(key in config for config in configs for key in _KEYS)


def _keys_in_hand(*names: str) -> set[str]:
    return {key for config in _configs_in_hand(*names) for key in config if isinstance(key, str)}


def _configs_in_hand(*names: str) -> Iterator[dict[Any, Any]]:
    """The additional_config of `self` (EngineArgs) and `vllm_config` (core, worker) of callers."""
    for held in _held_by_callers(names):
        # Static: the worker's wrapper forwards unknown names to a worker that is not there yet.
        extra = getattr_static(held, "additional_config", None)
        if isinstance(extra, dict):
            yield extra


def _held_by_callers(names: tuple[str, ...]) -> Iterator[Any]:
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        for name in names:
            if name in frame.f_locals:
                yield frame.f_locals[name]
        if frame.f_back is None:
            return
        frame = frame.f_back
