"""Keys of `additional_config` that were probably meant for ours: vLLM passes over them silently."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vllm_layershard.config import KEY, short
from vllm_layershard.ffn_config import FFN_KEY

_OFF: Final = {
    KEY: ("Layer sharding is off", '["o_proj"]'),
    FFN_KEY: ("No dense MLP is split", "2"),
}
"""For each of our keys, what is so without it, and a value to write for example."""

_NEAR: Final = 0.8
"""How much of a key must be that of the right one (difflib's ratio) to be taken for it."""


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


def _is_near(key: str, own: str) -> bool:
    from difflib import get_close_matches  # takes milliseconds that few need

    plain = "".join(filter(str.isalnum, key)).lower()
    return bool(get_close_matches(plain, [own.replace("_", "")], cutoff=_NEAR))
