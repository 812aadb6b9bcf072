"""One rank of a schedule: it computes, reloads when it is asked to, and is struck by a fault."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from reloads.schedule import LAYERS, PATIENCE_S, Fault, Schedule
from vllm_layershard.errors import LayerShardError, NodeError
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import Group, create_groups
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous
from vllm_layershard.runtime.ranks.replicas import ReplicaGroup
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.reload.board import Board, NodeBoard, StoreBoard
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import transport_of

WIDTH = 1 << 15
"""Values of a layer: enough for a forward to meet a copy half-way."""

LOST_S = 4
"""How long a rank waits in a collective for one that does not come."""


class Layer(nn.Module):
    """All its values say of which generation and which layer they are."""

    def __init__(self, generation: int, layer: int) -> None:
        super().__init__()
        value = float(100 * generation + layer)
        self.weight = nn.Parameter(torch.full((WIDTH,), value), requires_grad=False)


def live(pipe: Any, schedule: Schedule, rank: int, name: str, port: int) -> None:
    """Load the first generation, and do what the pipe says until it is closed."""
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            me = _Rank(schedule, rank, name, port)
    except (LayerShardError, dist.DistNetworkError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("ready")
    with torch.inference_mode():
        while True:
            me.compute_until(pipe.poll)
            try:
                what, *args = pipe.recv()
            except EOFError:
                return
            pipe.send(getattr(me, what)(*args))


class _Rank:
    """`seen` is all that its forwards have come to since it was last asked."""

    def __init__(self, schedule: Schedule, rank: int, name: str, port: int) -> None:
        group, board = _meet(schedule, rank, name, port)
        device = CpuDevice(torch.device("cpu"))
        layers = Series("linear", tuple(range(LAYERS)), 4 * WIDTH)
        (plan,) = build_plan([layers], schedule.size, 1, schedule.placement).series  # type: ignore[arg-type]
        kind = "broadcast" if schedule.sharing == "broadcast" else "pull"
        transport = transport_of(plan, group, device, kind)  # type: ignore[arg-type]
        loading = LoadingSeries(plan, group, device, transport)
        for layer in range(LAYERS):
            loading.adopt(layer, Layer(1, layer), ("weight",))
        self._series = loading.finish(plan)
        self._board = _Struck(board)
        self._reloads = Reloads(Act(self._board, PATIENCE_S), [self._series], device)
        self._computes = kind == "pull"  # by itself; a broadcast is everybody's
        self._fault: Fault | None = None
        self._seen: set[str] = set()

    def compute_until(self, asked: Callable[[float], bool]) -> None:
        while not asked(0.002):
            if self._computes:
                self._seen.add(self._forward())

    def prepare(self, fault: Fault) -> None:
        """The next forward, or the next reload, meets this fault."""
        self._fault = fault

    def forward(self) -> set[str]:
        """What this one and all forwards since the last question have come to."""
        seen, self._seen = self._seen, set()
        return seen | {self._forward()}

    def latest(self) -> str:
        return self._forward()

    def _forward(self) -> str:
        found = set()
        try:
            for layer in range(LAYERS):
                self._series.reach(layer)
                self._strike("forward", layer)
                self._series.wait(layer)
                weight = self._series.weights(layer)["weight"]
                low, high = float(weight.min()), float(weight.max())
                if low != high:
                    return f"torn: layer {layer} holds {low:g} to {high:g}"
                found.add(int(low) - layer)
        except LayerShardError as error:
            return f"{type(error).__name__}: {error}"
        return f"generation {found.pop() // 100}" if len(found) == 1 else f"mixture of {found}"

    def reload(self, generation: int) -> str:
        fault, self._fault = self._fault, None
        self._board.fault = fault if fault is not None and fault.where == "show" else None
        self._board.shown = 0
        try:
            with self._reloads.reloading(lambda: {"generation": generation}):
                for layer in range(LAYERS):
                    _strike(fault, "layer", layer)
                    if (fault, "copy", layer) == (fault, fault and fault.kind, fault and fault.at):
                        _copy_half(self._series, layer)
                    self._series.reload(layer, Layer(generation, layer))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self._board.fault = None
        return "reloaded"

    def _strike(self, where: str, at: int) -> None:
        if self._fault is not None and (self._fault.where, self._fault.at) == (where, at):
            fault, self._fault = self._fault, None
            _strike(fault, where, at)


class _Struck(Board):
    """A board on which a document can fail to be shown."""

    def __init__(self, board: Board) -> None:
        self.ranks, self.rank = board.ranks, board.rank
        self.fault: Fault | None = None
        self.shown = 0
        self._board = board

    def show(self, document: Any) -> None:
        number, self.shown = self.shown, self.shown + 1
        struck = self.fault is not None and self.fault.at == number
        if struck and not self.fault.after:  # type: ignore[union-attr]
            _strike(self.fault, "show", number)
        self._board.show(document)
        if struck and self.fault.after:  # type: ignore[union-attr]
            _strike(self.fault, "show", number)

    def read(self, rank: int) -> Any:
        return self._board.read(rank)


def _strike(fault: Fault | None, where: str, at: int) -> None:
    if fault is None or (fault.where, fault.at) != (where, at):
        return
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    if fault.kind == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault.kind == "allocation":
        raise MemoryError("no memory for the new weight")
    if fault.kind == "naming":
        raise NodeError("/dev/shm is full")


def _copy_half(series: ShardedSeries, layer: int) -> None:
    """Have the next copy of the layer fail when half of it is there."""
    transport = series.transport
    transport = getattr(transport, "former", transport)
    reload = transport.reload

    def fail(position: int, tensors: Any) -> None:
        transport.reload = reload  # type: ignore[method-assign]
        for stored, new in zip(transport._stored.get(position, ()), tensors, strict=True):  # type: ignore[attr-defined]
            half = stored.numel() // 2
            stored.view(-1)[:half].copy_(new.view(-1)[:half])
        raise RuntimeError("the copy failed half-way")

    transport.reload = fail  # type: ignore[method-assign]


def _meet(schedule: Schedule, rank: int, name: str, port: int) -> tuple[Group, Board]:
    ranks = tuple(range(schedule.size))
    if schedule.sharing == "replicas":
        rendezvous = Rendezvous(name, rank)
        return ReplicaGroup(rendezvous, ranks), NodeBoard(rendezvous, ranks)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=schedule.size
    )
    timeout = timedelta(seconds=LOST_S)
    groups = create_groups([ranks], "gloo", data_timeout=timeout, control_timeout=timeout)
    store = PrefixStore("reload", _get_default_store())
    return groups[0], StoreBoard(store, rank, ranks)
