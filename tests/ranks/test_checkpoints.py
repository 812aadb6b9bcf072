"""Ranks in lockstep compare what they are about to load: real ranks, files of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from gloo.ranks import run_ranks
from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.ranks.checkpoint import Checkpoint, fault_in, holdings
from vllm_layershard.runtime.ranks.handshake import Handshake

PATIENCE_S = 60.0
SECOND = "model-00002-of-00002.safetensors"
START = (
    "the ranks of layer sharding were given different checkpoints, whose layers would be mixed; "
)
AGAINST = "give every rank the same files, or the same commit. rank 1 against rank 0: "

Case = tuple[tuple[str | None, str | None], tuple[str | None, str | None], str | None]
"""Each rank's directory (None: not here yet) and commit; what is said, None if they are alike."""

CASES: dict[str, Case] = {
    "a copy on another node": (("base", None), ("copy", None), None),
    "a hub's cache and a directory": (("base", "1f2e"), ("copy", None), None),
    "one commit, not downloaded yet": (("base", "1f2e"), (None, "1f2e"), None),
    "one commit, a file of which one has more": (("base", "1f2e"), ("part", "1f2e"), None),
    "two commits with the same bytes": (("base", "1f2e"), ("copy", "3d4c"), None),
    "nothing known of a hub": ((None, None), (None, None), None),
    "other values": (
        ("base", None),
        ("values", None),
        f"{SECOND} has other values on rank 1 than on rank 0 (values; base)",
    ),
    "a damaged file of one commit": (
        ("base", "1f2e"),
        ("values", "1f2e"),
        f"{SECOND} has other values on rank 1 than on rank 0 (values at commit 1f2e; base at "
        "commit 1f2e)",
    ),
    "another layout": (
        ("base", None),
        ("turned", None),
        f"{SECOND} has other names, types or shapes on rank 1 than on rank 0 (turned; base)",
    ),
    "a shorter file": (
        ("base", None),
        ("short", None),
        f"{SECOND} has 1,000 bytes on rank 1, BYTES on rank 0 (short; base)",
    ),
    "a missing file": (
        ("base", None),
        ("part", None),
        f"{SECOND} is not there on rank 1 (part; base)",
    ),
    "a hub's commit and a directory": (
        ("base", None),
        (None, "1f2e"),
        "none at commit 1f2e and base cannot be compared before they are loaded: download the "
        "model on every node first",
    ),
}


def directories(place: Path) -> Path:
    base = place / "base"
    base.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2):
        save_file(
            {
                f"model.layers.{number}.{name}.weight": torch.randn(32, 64, generator=generator)
                for name in ("q_proj", "o_proj")
            },
            base / f"model-0000{number}-of-00002.safetensors",
        )
    for name in ("copy", "values", "turned", "short", "part"):
        shutil.copytree(base, place / name, copy_function=shutil.copyfile)  # with times of its own
    tensors = load_file(base / SECOND)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, place / "values" / SECOND)
    turned = {name: tensor.t().contiguous() for name, tensor in tensors.items()}
    save_file(turned, place / "turned" / SECOND)
    (place / "short" / SECOND).write_bytes((base / SECOND).read_bytes()[:1000])
    (place / "part" / SECOND).unlink()
    return place


def compared(rank: int, place: Path) -> dict[str, str | None]:
    """What each case comes to on this rank."""
    said: dict[str, str | None] = {}
    for number, (case, (*ranks, _)) in enumerate(CASES.items()):
        store = PrefixStore(f"case{number}", _get_default_store())
        name, commit = ranks[rank]
        files: Any = None if name is None else holdings((place / name).iterdir())
        checkpoint = Checkpoint(name or "none", commit, files)
        try:
            handshake = Handshake(store, rank, 2, PATIENCE_S)
            handshake.compare_by("checkpoint", checkpoint._asdict(), fault_in)
            said[case] = None
        except MismatchError as error:
            said[case] = str(error)
    return said


def test_another_checkpoint_is_one_error_on_every_rank_that_names_rank_and_file(tmp_path):
    zero, one = run_ranks(2, compared, tmp_path, directories(tmp_path))
    assert zero == one
    nbytes = f"{(tmp_path / 'base' / SECOND).stat().st_size:,}"
    assert zero == {
        case: None if said is None else f"{START}{AGAINST}{said.replace('BYTES', nbytes)}"
        for case, (*_, said) in CASES.items()
    }
