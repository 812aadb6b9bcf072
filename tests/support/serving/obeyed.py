"""Obeyed: which options of a server's command vLLM has overruled, by the configuration it logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_CONFIG = re.compile(r"Initializing a V1 LLM engine \(v[^)]*\) with config: (.*)")
"""Source: vLLM 0.32, v1/engine/core.py, `EngineCore.__init__`: the first engine of each node."""

_BLOCK_SIZE = "overriding user-specified block_size"
"""Source: vLLM 0.32, platforms/cpu.py. The logged configuration has no size of a block."""


def overruled(command: Sequence[str], log: str) -> list[str]:
    """The options that were asked for and are not in force, sorted; a model compiles unless eager.

    vLLM turns them off in many places, some without a word: of MLA on a CPU, of LoRA there, of
    models without a cache, of platforms. What the engine runs with says so, whatever the reason.

    Raises:
        ValueError: no engine has logged its configuration.
    """
    configs = _CONFIG.findall(log)
    if not configs:
        raise ValueError("no engine has logged its configuration")
    found = {option for config in configs for option in _overruled_by(config, command)}
    if "--block-size" in command and _BLOCK_SIZE in log:
        found.add("--block-size")
    return sorted(found)


def _overruled_by(config: str, command: Sequence[str]) -> list[str]:
    def has(name: str, value: str) -> bool:
        return f" {name}={value}, " in config

    caches = max(["--enable-prefix-caching", "--no-enable-prefix-caching"], key=_last_in(command))
    chunked = has("enable_chunked_prefill", "True")
    obeyed = {
        caches: has("enable_prefix_caching", str(caches == "--enable-prefix-caching")),
        "--enable-chunked-prefill": chunked,
        "--max-num-batched-tokens": chunked,  # without chunks no prompt may be longer
        "--speculative-config": not has("speculative_config", "None"),
        "--enforce-eager": has("enforce_eager", "True"),
    }
    found = [option for option, is_obeyed in obeyed.items() if option in command and not is_obeyed]
    if "--enforce-eager" not in command:
        compiled = has("enforce_eager", "False") and "'mode': <CompilationMode.NONE" not in config
        found += [] if compiled else ["compilation"]
    return found


def _last_in(command: Sequence[str]) -> Callable[[str], int]:
    """Where an option stands last; vLLM takes the last one of a pair."""
    return lambda option: max((i for i, word in enumerate(command) if word == option), default=-1)
