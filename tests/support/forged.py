"""Forged: plain data that is nearly what it should be, as a broken or hostile rank sends it."""

from __future__ import annotations

import copy
import random
from typing import Any

_STRANGE = (
    None,
    True,
    -1,
    0,
    7,
    1 << 70,
    1.5,
    "",
    "../../etc/passwd",
    "x" * 5000,
    "\0",
    [],
    {},
    [[]],
    {"a": 1},
)


def forged(document: Any, draw: random.Random) -> Any:
    """The document with one to three places changed, removed, added or swapped."""
    found = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(list(_places(found)) or [([found], 0)])
        what = draw.randrange(4)
        if what == 0 and isinstance(holder, dict):
            del holder[key]
        elif what == 1 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += draw.choice((-1, 1, 64, 4096, 1 << 40))
        elif what == 2 and isinstance(holder, dict):
            holder[draw.choice(("0", "99", "-1", "name", "stored"))] = copy.deepcopy(holder[key])
        else:
            holder[key] = copy.deepcopy(draw.choice(_STRANGE))
        if not isinstance(found, dict):
            return found
    return found


def _places(node: Any) -> Any:
    """Every holder and key under a document."""
    keys = (
        list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    )
    for key in keys:
        yield node, key
        yield from _places(node[key])
