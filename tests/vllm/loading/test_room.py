"""Two real engines on a node with too little memory: both are told so before a byte is shared."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hosted.engines import load, run_engines
from hosted.wide import wide_model
from recital import model_path
from vllm_layershard import Layout, load_model, plan_model
from vllm_layershard.errors import NodeError

NAMES = {"dense": ["qkv_proj", "o_proj"], "experts": ["o_proj", "q_b_proj"]}


def with_room_for(free: int, files: int, rank: int, config: Any) -> dict[str, Any]:
    """What two starts come to: with so much memory and so many files, and with a byte less."""
    from vllm_layershard.runtime.peer_memory import room
    from vllm_layershard.runtime.peer_memory.limits import Limit
    from vllm_layershard.runtime.piece import Piece

    pieces: list[int] = []
    make = Piece.__init__

    def counted(piece: Any, nbytes: int) -> None:
        pieces.append(nbytes)
        make(piece, nbytes)

    Piece.__init__ = counted
    found: dict[str, Any] = {"said": []}
    for left, open_files in ((free - 1, files), (free, files - 1), (free, files)):
        limits = [Limit("/dev/shm", "this node's", left, "enlarge it")]
        room.memory_limits = lambda root, limits=limits: limits
        room.descriptors_left = lambda root, open_files=open_files: open_files
        config.compilation_config.static_forward_context.clear()
        pieces.clear()
        try:
            found["kept"] = load(config, lambda model: None) is not None
        except NodeError as error:
            found["said"].append(str(error))
            found["large"] = [nbytes for nbytes in pieces if nbytes > 4096]
    return found


def model_of(shape: str, place: Path) -> Path:
    return model_path("dense") if shape == "dense" else wide_model(place)


@pytest.mark.parametrize("shape", ["dense", "experts"])
def test_too_little_room_is_one_error_on_both_ranks(shape, tmp_path):
    model, layers = model_of(shape, tmp_path), NAMES[shape]
    sharding = {"layers": layers, "transport": "pull"}
    memory = plan_model(load_model(str(model)), layers, Layout(dp=2), transport="pull").memory
    total, most = memory.shared_memory_bytes, memory.shared_memory_files
    inspect = partial(with_room_for, total, most + 64)
    for seen in run_engines(model, sharding, inspect):
        assert not isinstance(seen, str), seen
        assert seen["kept"], "as much as the planner says is enough"
        assert seen["large"] == [], "nothing has been taken where it is not"
        memory_said, files_said = seen["said"]
        assert memory_said == (
            f"/dev/shm: {total:,} bytes are needed for weights that other ranks read (ranks 0, 1), "
            f"and {total - 1:,} are free; enlarge it, shard fewer layers, or use transport "
            "'broadcast' where the ranks run in lockstep"
        )
        assert f"{most + 64} more file descriptors are needed, one for each layer" in files_said
        assert f"leaves {most + 63}; raise it (ulimit -n)" in files_said
