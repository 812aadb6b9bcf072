"""Keys of `additional_config` that were probably meant for ours, and options beside them.

vLLM passes over them silently.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vllm_layershard.config import KEY, OPTIONS, short
from vllm_layershard.ffn_config import FFN_KEY

_OFF: Final = {
    KEY: ("Layer sharding is off", '["o_proj"]'),
    FFN_KEY: ("No dense MLP is split", "2"),
}
"""For each of our keys, what is so without it, and a value to write for example."""

_NEAR: Final = 0.8
"""How much of a key must be that of the right one (difflib's ratio) to be taken for it."""

_NEAR_OPTION: Final = 0.9
"""The same of an option: these are shorter, and other plugins have words like them."""


def slips(given: Collection[str]) -> list[str]:
    """For each of our keys that is not among the given, a sentence that names those near it."""
    said = []
    for own, (off, example) in _OFF.items():
        near = sorted(key for key in given if key not in _OFF and _is_near(key, own))
        if near and own not in given:
            said.append(
                f"{off}: additional_config has no key {own!r}, but "
                f'{" and ".join(map(short, near))}; if that is meant, write {{"{own}": {example}}}'
            )
    return said


def lost_options(given: Collection[str]) -> str:
    """A sentence that names options which stand beside a key of ours, or one near it; "": none."""
    return _stray(given, sorted(key for key in given if key in OPTIONS), "")


def near_options(given: Collection[str]) -> str:
    """The same of keys near an option. Near one of one word is one in other letters alone."""
    near = {key: own for key in sorted(given) for own in OPTIONS if _is_near_option(key, own)}
    return _stray(given, list(near), f"if {' and '.join(near.values())} is meant, ")


def _stray(given: Collection[str], lost: list[str], meant: str) -> str:
    near = sorted(key for key in given if any(_is_near(key, own) for own in _OFF))
    beside = next((key for key in (*_OFF, *near) if key in given), None)
    if beside is None or not lost:
        return ""
    return (
        f"{', '.join(map(_plain, lost))}: stands beside {_plain(beside)}, where vLLM would not see "
        f'it; {meant}write it into {{"{KEY}": {{...}}}}'
    )


def _is_near_option(key: str, own: str) -> bool:
    if key in OPTIONS:
        return False
    return key.lower() == own or ("_" in own and _is_near(key, own, _NEAR_OPTION))


def _plain(key: str) -> str:
    return short(key)[1:-1]


def _is_near(key: str, own: str, cutoff: float = _NEAR) -> bool:
    from difflib import get_close_matches  # takes milliseconds that few need

    plain = "".join(filter(str.isalnum, key)).lower()
    return bool(get_close_matches(plain, [own.replace("_", "")], cutoff=cutoff))
