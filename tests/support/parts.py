"""Parts: what `make test-matrix` runs, in pieces of at most half an hour on two cores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

PARTS = {
    "exchange": "broadcasts and pulls among ranks in lockstep, and what a rank reads and holds",
    "tokens": "token exchanges: layouts, modes, a bias, and beside plain tensor parallelism",
    "moves": "forwards that move tokens: always, in other layouts, with LoRA",
    "ways": "forwards that move tokens: compiled, with chunked prefill and a prefix cache",
    "mlps": "dense MLPs in parts: alone, compiled, and on four ranks",
    "compiled": "compiled servers beside their controls and beside plain ones",
    "layouts": "tensor parallelism and two nodes, eager and compiled",
    "stages": "pipeline stages, compiled",
    "modes": "caching, LoRA, drafting, quantised checkpoints, reloads, idle ranks",
    "replicas": "replicas of a dense model: placements, steps, nodes, fp8 in blocks",
    "ends": "servers that end: killed replicas, failing ranks, nodes that disagree",
    "cache": "the bytes of the KV cache, for each family and layout",
    "truth": "families that no bundled config has, and further formats, beside vLLM's own classes",
    "reloads": "a thousand reloads of which something fails",
    "faults": "generated faults and interleavings, killed replicas without a server",
    "tools": "calibrate, the benchmarks, the wheel, other releases of vLLM",
    "oldest": "the oldest vLLM that is served, in an environment of its own",
}
"""Name -> what is in it. `oldest` runs tests of the main run; no mark names it."""


def part_of(marks: Sequence[pytest.Mark]) -> str | None:
    """The part of a test with these `matrix` marks; None if it belongs to the main run.

    Raises:
        PartError: it has several marks, or one that names no part.
    """
    if not marks:
        return None
    named = [mark.kwargs.get("part") for mark in marks]
    if len(marks) > 1 or marks[0].args or named[0] not in PARTS.keys() - {"oldest"}:
        raise PartError(f"give it one mark, matrix(part=...), of {', '.join(PARTS)}: {named}")
    return str(named[0])


class PartError(Exception):
    """A test of the matrix that would run in no part, or in several."""
