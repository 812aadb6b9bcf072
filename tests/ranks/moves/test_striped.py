"""One linear of which every rank has some rows: fp8 in blocks, few rows, new weights, a death."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from gloo.moving import is_poisoned, sharding_by, tokens_of
from gloo.ranks import RankError, run_ranks
from vllm_layershard.errors import TransportError
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.moves.linear import Compute
from vllm_layershard.runtime.moves.ops import bind_linear, order_on
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.moves.striped_linear import StripedLinear

LAYERS = 3
BLOCK = 128
THRESHOLD = 8
RULE = MoveRule("auto", THRESHOLD)
LOADS = [(1, 2, 3, 4), (8, 1, 0, 0), (0, 3, 0, 5), (0, 0, 0, 0), (20, 20, 20, 20), (7, 7, 7, 7)]


class InBlocks(nn.Module):
    """fp8, a scale for every block of rows and columns."""

    def __init__(self, rows: int, columns: int, draw: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(rows, columns, generator=draw).to(torch.float8_e4m3fn)
        scales = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK), generator=draw) + 0.5
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scales, requires_grad=False)

    bias: torch.Tensor | None = None

    def rows(self, x: torch.Tensor, weight: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """What these rows make, whose first begins a block."""
        scales = self.weight_scale_inv[first // BLOCK : -(-end // BLOCK)]
        spread = scales.repeat_interleave(BLOCK, 0)[: end - first].repeat_interleave(BLOCK, 1)
        return linear(x, (weight.float() * spread[:, : weight.shape[1]]).bfloat16())


class Plain(nn.Linear):
    """bfloat16, with a bias."""

    def __init__(self, rows: int, columns: int, draw: torch.Generator) -> None:
        super().__init__(columns, rows, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def rows(self, x: torch.Tensor, weight: torch.Tensor, first: int, end: int) -> torch.Tensor:
        return linear(x, weight, self.bias[first:end])


class Model:
    """Linears of one kind, shared, and the same linears whole."""

    def __init__(self, kind: Any, rows: int, columns: int) -> None:
        self.plain, self.shared = (
            [kind(rows, columns, torch.Generator().manual_seed(9 + i)) for i in range(LAYERS)]
            for _ in range(2)
        )
        self.columns, self.now = columns, (0,)
        sharding = sharding_by(RULE, placement="striped")
        for layer_id, each in enumerate(self.shared):
            sharding.add(each, layer_id=layer_id)
        sharding.finish(verify=True)
        self.sharding = sharding
        (self.series,) = sharding.series.values()
        self.bounds = [self.series.plan.rows(r) for r in range(self.series.group.size)]
        self.moving = MovingSeries(self.series, RULE, lambda _: self.now)
        for position in range(LAYERS):
            name = f"layers.{position}.linear"
            ops.bind(f"layers.{position}", name, ops.Place(self.series, position, self.moving))
            self.serve(position, self.computing_rows(position))

    def serve(self, position: int, rows: Compute) -> None:
        module, name = self.shared[position], f"layers.{position}.linear"
        whole = lambda x, bias: module.rows(x, module.weight, 0, len(module.weight))  # noqa: E731
        bind_linear(StripedLinear(self.moving, position, name, whole, rows))

    def computing_rows(self, position: int) -> Compute:
        first, end = self.bounds[self.series.group.group_rank]

        def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            weight = self.series.rows(position)
            assert weight is not None
            return self.shared[position].rows(x, weight, first, end)

        return compute

    def forward(self, counts: tuple[int, ...], seed: int) -> list[tuple[bool, bool]]:
        """Of each layer, whether it makes what it should: to the bit, and to rounding."""
        self.now, rank, equal = counts, self.series.group.group_rank, []
        moves_weights = RULE.moves_weights(counts)
        if not self.series.in_flight:
            self.series.slots.poison()
        for layer, plain in enumerate(self.plain):
            torch.ops.layershard.reach(torch.zeros(counts[rank], 1), f"layers.{layer}")
            if layer == 0 and not moves_weights:
                self.series.slots.poison()
            everyone = [tokens_of(r, n, self.columns, seed + layer) for r, n in enumerate(counts)]
            x, number = everyone[rank], len(plain.weight)
            whole = plain.rows(x, plain.weight, 0, number)
            expected = whole if moves_weights else self.by_rows(plain, torch.cat(everyone), counts)
            made = x.new_full((len(x), number), float("nan"))
            name, order = f"layers.{layer}.linear", order_on(torch.device("cpu"))
            torch.ops.layershard.linear(x, self.shared[layer].bias, made, order, name)
            near = torch.allclose(made.float(), whole.float(), atol=1 / 8, rtol=1 / 64)
            equal.append((torch.equal(made, expected), near))
        return equal

    def by_rows(self, plain: Any, joined: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        made = [
            plain.rows(joined, plain.weight[first:end], first, end)
            for first, end in self.bounds
            if first < end
        ]
        return torch.cat(made, dim=1).split(list(counts))[self.series.group.group_rank]


KINDS = {
    "fp8, whole blocks": (InBlocks, 512, 256),
    "fp8, half a block": (InBlocks, 2 * BLOCK + 64, 256),
    "fp8, five blocks": (InBlocks, 640, 256),
    "few rows": (Plain, 3, 64),
    "rows that no number divides": (Plain, 37, 32),
}


@torch.inference_mode()
def forwards(rank: int) -> dict[str, Any]:
    found = {}
    size = torch.distributed.get_world_size()
    for name, kind in KINDS.items():
        model = Model(*kind)
        equal, still, weight_bytes = [], [], []
        for number, load in enumerate(LOADS):
            before = model.series.counters.weight_bytes
            equal += model.forward(load[:size], 10 * number)
            still.append(is_poisoned(model.series))
            weight_bytes.append(model.series.counters.weight_bytes - before)
        counters = model.series.counters
        found[name] = {
            "equal": equal,
            "still": still,
            "weight bytes": weight_bytes,
            "activation bytes": counters.activation_bytes,
            "forwards": (counters.forwards, counters.activation_forwards),
            "rows": model.bounds,
            "resident": model.series.resident_bytes(),
        }
        ops.unbind([f"layers.{layer}" for layer in range(LAYERS)])
    return found


@torch.inference_mode()
def rows_computed(rank: int) -> list[list[int]]:
    """Of how many tokens a rank makes its rows, forward by forward."""
    model = Model(*KINDS["rows that no number divides"])
    seen: list[list[int]] = []

    def recording(compute: Compute) -> Compute:
        def recorded(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            seen[-1].append(len(x))
            return compute(x, bias)

        return recorded

    for position in range(LAYERS):
        model.serve(position, recording(model.computing_rows(position)))
    for load in ((20, 8), (7, 7), (7, 1), (9, 20)):
        seen.append([])
        model.forward(load, 0)
    return seen


def test_the_first_forward_that_moves_weights_needs_as_much_room_as_any_other(tmp_path):
    """Each rank makes its rows once of as many tokens as it ever gathers: a host measures it."""
    gathered = (THRESHOLD - 1) * 2
    for seen in run_ranks(2, rows_computed, tmp_path):
        assert seen == [[gathered], [gathered] * LAYERS, [8] * LAYERS, []]


ROWS = {
    2: {"fp8, whole blocks": [(0, 256), (256, 512)], "few rows": [(0, 1), (1, 3)]},
    3: {"fp8, five blocks": [(0, 128), (128, 384), (384, 640)]},
    4: {
        "fp8, half a block": [(0, 0), (0, 128), (128, 256), (256, 320)],
        "few rows": [(0, 0), (0, 1), (1, 2), (2, 3)],
    },
}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_rank_computes_its_rows_and_the_sums_are_those_of_the_whole(tmp_path, ranks):
    moves_weights = [RULE.moves_weights(load[:ranks]) for load in LOADS]
    for rank, found in enumerate(run_ranks(ranks, forwards, tmp_path)):
        for name, (kind, rows, columns) in KINDS.items():
            seen = found[name]
            assert seen["equal"] == [(True, True)] * LAYERS * len(LOADS), name
            assert seen["still"] == [not weights for weights in moves_weights]
            assert seen["rows"] == ROWS[ranks].get(name, seen["rows"])
            first, end = seen["rows"][rank]
            row_bytes = columns * (1 if kind is InBlocks else 2)
            arriving = LAYERS * (rows - (end - first)) * row_bytes
            assert seen["weight bytes"] == [arriving * weights for weights in moves_weights]
            assert seen["resident"] == LAYERS * (end - first) * row_bytes
            assert seen["activation bytes"] == sum(
                2 * LAYERS * ((ranks - 1) * max(load) * columns + load[rank] * (rows - end + first))
                for load in (load[:ranks] for load in LOADS)
                if not RULE.moves_weights(load)
            )
            assert seen["forwards"] == (len(LOADS), len(LOADS) - sum(moves_weights))


@torch.inference_mode()
def reloaded(rank: int) -> list[bool]:
    """The second layer is given the weight of the third."""
    model = Model(InBlocks, 512, 256)
    before = [bits for bits, _ in model.forward((3, 2), 0)]
    source, target = model.plain[2], model.shared[1]
    for module in (target, model.plain[1]):
        for name, parameter in source.named_parameters():
            setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
    model.series.reload(1, target)
    torch.distributed.barrier()
    few, many = model.forward((3, 2), 1), model.forward((9, 2), 2)
    return [*before, *(bits for bits, _ in (*few, *many))]


def test_new_weights_are_served_by_rows_and_whole(tmp_path):
    for seen in run_ranks(2, reloaded, tmp_path):
        assert seen == [True] * 3 * LAYERS


@torch.inference_mode()
def dies(rank: int, told: Path) -> None:
    """Rank 1 dies instead of its product; the other writes what it is told."""
    model = Model(Plain, 16, 32)
    model.forward((3, 3), 0)

    def dying(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        model.serve(1, dying)
    with pytest.raises(TransportError) as error:
        model.forward((3, 3), 1)
    told.write_text(str(error.value))


def test_a_rank_that_dies_is_told_with_the_linear(tmp_path):
    with pytest.raises(RankError, match="rank 1: crashed: exit code -9"):
        run_ranks(2, dies, tmp_path, tmp_path / "told")
    said = "rank 0: layers.1.linear, stored in stripes: its results could not be moved: a rank of "
    assert said + "the group [0, 1] died or hangs" in (tmp_path / "told").read_text()
