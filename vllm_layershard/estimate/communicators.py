"""Communicators: the private ones of layer sharding, and the device memory that they keep.

Note [What a communicator keeps]
NCCL gives each channel of a ring a buffer for each of its three protocols, on the receiving side,
and a page for the sender. Within a node that is 0.5 + 4.6875 + 4 MiB, which is rounded up to pages
of 2 MiB, and 2 MiB: 12 MiB a channel. Between nodes either side of a NIC has two of the buffers in
device memory: 17.375 MiB a channel. Ours has at most 8 channels, and a broadcast knows no algorithm
but the ring. Others are connected when they are first used (NCCL_RUNTIME_CONNECT). Derived, not
measured, from NVIDIA/nccl at 5067397, June 2026: src/init.cc, src/include/device.h,
src/transport/p2p.cc and net.cc. Names, flags and what the driver adds are not counted.

HCCL keeps 2 x HCCL_BUFFSIZE, of 200 MB by default: CANN's page on that variable, 8.0 to 9.0.

Nobody says what RCCL keeps. One of NCCL that moves tokens has no bound, and no figure.

Note [Which communicators are kept]
A group of ranks has one from the first weight that is loaded and moves: hosts/groups.py. It ends
with the loading where all groups of a stage pull and `move` is `weights`: hosts/model.py. Engines
that are not in lockstep have none. With `auto` NCCL has a second one, for tokens alone. The dense
MLPs that are split have one for their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Sharding

CHANNELS: Final = 8
"""The most that the runtime lets NCCL take: MAX_CTAS in runtime/ranks/nccl.py."""

_MIB: Final = 2**20
_LL, _LL128, _SIMPLE = 512 * 8 * 8 * 16, 640 * 120 * 8 * 8, 4 * _MIB
_PAGE: Final = 2 * _MIB
_WITHIN: Final = -(-(_LL + _LL128 + _SIMPLE) // _PAGE) * _PAGE + _PAGE
_BETWEEN: Final = 2 * (_LL128 + _SIMPLE)

_NCCL: Final = "from NCCL's sources"
NCCL_WITHIN: Final = Figure(CHANNELS * _WITHIN, "formula", _NCCL)
NCCL_BETWEEN: Final = Figure(CHANNELS * _BETWEEN, "formula", _NCCL)
HCCL: Final = Figure(2 * 200 * _MIB, "formula", "2 x HCCL_BUFFSIZE of 200 MB")


class Communicators(NamedTuple):
    """Those of the rank whose communicators keep most.

    They are `number`, and keep `nbytes` of the device, as far as that is known. `unknown` of them
    have no figure. `source` says where the others have theirs; empty where all are unknown.
    """

    number: int
    nbytes: int
    unknown: int
    source: str

    @property
    def said(self) -> str:
        """What stands behind the bytes, for a person."""
        if self.unknown == self.number:
            return "what is kept is not known"
        rest = f"; not counted: {self.unknown} for tokens, of unknown size" if self.unknown else ""
        return f"derived, not measured ({self.source}){rest}"


def communicators_of(sharding: Sharding, hardware: Hardware) -> Communicators:
    """What this sharding adds to the process groups that vLLM has, while it serves."""
    return max(map(_counted, _figures(sharding, hardware)), key=lambda kept: (kept[1], kept[0]))


def communicator_bytes(sharding: Sharding, hardware: Hardware) -> tuple[int, ...]:
    """By global rank, what its private communicators keep of the device's memory."""
    return tuple(_counted(figures).nbytes for figures in _figures(sharding, hardware))


def _counted(figures: list[Figure | None]) -> Communicators:
    known = [figure for figure in figures if figure is not None]
    nbytes = sum(int(figure.value) for figure in known)
    source = known[0].source if known else ""
    return Communicators(len(figures), nbytes, len(figures) - len(known), source)


def _figures(sharding: Sharding, hardware: Hardware) -> list[list[Figure | None]]:
    """By global rank, what each of its communicators keeps; None where that is not known."""
    found: list[list[Figure | None]] = [[] for _ in range(sharding.deployment.layout.world_size)]
    move = sharding.config.move
    for ranks in _groups_of(sharding):
        weights = _keeps(ranks, hardware, bounded=move != "activations")
        # HCCL, which knows no bound, moves both on one.
        apart = [None] if move == "auto" and not _is_npu(hardware) else []
        for rank in ranks:
            found[rank] += [weights, *apart]
    for rank, figures in enumerate(found):
        stage = sharding.deployment.layout.stage_of(rank)
        if sharding.split_mlps and sharding.split_mlps[stage].mlps:
            figures.append(_keeps((rank,), hardware, bounded=False))
    return found


def _groups_of(sharding: Sharding) -> Iterator[tuple[int, ...]]:
    """The groups of ranks whose communicator outlives the loading, each once."""
    layout = sharding.deployment.layout
    if not layout.in_lockstep:
        return
    only_weights = sharding.config.move == "weights"
    for stage in range(layout.pp):
        groups = [group for group in sharding.groups if group.pp_stage == stage]
        if only_weights and all(group.transport_name == "pull" for group in groups):
            continue
        yield from dict.fromkeys(ranks for group in groups if group.moves for ranks in group.ranks)


def _keeps(ranks: tuple[int, ...], hardware: Hardware, *, bounded: bool) -> Figure | None:
    if _is_npu(hardware):
        return HCCL
    if hardware.compute_capability is None or not bounded:
        return None
    domains = {rank // int(hardware.node_size.value) for rank in ranks}
    return NCCL_WITHIN if len(domains) == 1 else NCCL_BETWEEN


def _is_npu(hardware: Hardware) -> bool:
    return hardware.compute_capability is None and hardware.low_bit_format == "int8"
