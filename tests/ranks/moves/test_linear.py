"""One linear whose owner computes it for all: compiled, left alone, misled."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
import torch.distributed as dist

from gloo.moving import SHAPES, bind_moving, is_poisoned, tokens_of
from gloo.ranks import RankError, run_ranks
from vllm_layershard.errors import MismatchError, TransportError
from vllm_layershard.manual import LayerSharding
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime.exchange.tokens import TokenExchange
from vllm_layershard.runtime.moves.linear import MovedLinear, rows_from, rows_to
from vllm_layershard.runtime.moves.ops import bind_linear, order_on, run_linears_within
from vllm_layershard.runtime.moves.striped_linear import results_of
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.ranks.rows import gather_rows, scatter_sums
from vllm_layershard.runtime.stats import Counters

NAME, LAYERS = "o_proj", 3
IN, OUT = SHAPES[NAME]
THRESHOLD = 8
LOADS = [(1, 2), (8, 1), (0, 3), (3, 0), (20, 20), (0, 0), (7, 7), (1, 9), (2, 2)]
KINDS = [max(load) >= THRESHOLD for load in LOADS]


class Model:
    """Linears of one series over two ranks; `now` is what both have agreed on."""

    def __init__(self, move: str = "auto", start: int | None = THRESHOLD, **options: Any) -> None:
        self.plain, shared = self._linears(), self._linears()
        sharding = LayerSharding(**options)
        for layer_id, each in enumerate(shared):
            sharding.add(each, layer_id=layer_id)
        sharding.finish()
        (self.series,) = sharding.series.values()
        self.now: tuple[int, ...] = ()
        self.order = order_on(torch.device("cpu"))
        self.sharding, self.shared = sharding, shared  # it refers to the layers weakly
        rule = MoveRule(move, start)  # type: ignore[arg-type]
        self.moving = bind_moving(self.series, list(shared), NAME, rule, lambda rows: self.now)

    @staticmethod
    def _linears() -> torch.nn.ModuleList:
        torch.manual_seed(5)
        return torch.nn.ModuleList(
            torch.nn.Linear(IN, OUT, dtype=torch.bfloat16) for _ in range(LAYERS)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Layer by layer, the results filled up to be the next one's input."""
        for layer, module in enumerate(self.shared):
            torch.ops.layershard.reach(x, f"layers.{layer}")
            name = f"layers.{layer}.{NAME}"
            y = x.new_empty((x.shape[0], OUT))
            torch.ops.layershard.linear(x, module.bias, y, self.order, name)
            x = torch.cat([y, x[:, OUT:]], dim=1).tanh()
        return x

    def expected(self, everyone: list[torch.Tensor], *, together: bool) -> list[torch.Tensor]:
        """In one process: all rows in one product, or each rank's in its own."""
        counts = [len(rows) for rows in everyone]
        for module in self.plain:
            made = (
                list(module(torch.cat(everyone)).split(counts))
                if together
                else [module(rows) for rows in everyone]
            )
            everyone = [
                torch.cat([y, x[:, OUT:]], dim=1).tanh()
                for x, y in zip(everyone, made, strict=True)
            ]
        return everyone


@torch.inference_mode()
def forwards(rank: int, compiled: bool) -> dict[str, Any]:
    torch._inductor.config.force_disable_caches = True  # what an op mutates is in no key of theirs
    model = Model()
    run = torch.compile(model, dynamic=True, fullgraph=True) if compiled else model
    equal, still, ended = [], [], [0]

    def end() -> None:
        ended[0] += 1

    model.series.on_forward_end = end
    for number, load in enumerate(LOADS):
        model.now = load
        everyone = [tokens_of(r, count, IN, number) for r, count in enumerate(load)]
        x = everyone[rank].clone()
        model.series.slots.poison()
        made = run(x)
        expected = model.expected(everyone, together=not KINDS[number])[rank]
        equal.append(torch.equal(made, expected) if not compiled else _near(made, expected))
        still.append(is_poisoned(model.series))
    counters = model.series.counters
    return {
        "equal": equal,
        "still": still,
        "ended": ended[0],
        "forwards": (counters.forwards, counters.activation_forwards),
        "movements": (counters.launches, counters.waits),
        "bytes": (counters.weight_bytes, counters.activation_bytes),
    }


@torch.inference_mode()
def over_a_group_apart(rank: int) -> list[bool]:
    """No movement of tokens may use the group of the weights, of which there is none here."""
    everyone = (0, 1)
    tokens, control = (dist.new_group(list(everyone)) for _ in range(2))
    group = RankGroup(everyone, rank, None, control, tokens)  # type: ignore[arg-type]
    counts, rows = (3, 1), [torch.full((3, 4), 1.0), torch.full((1, 4), 2.0)]
    joined = torch.cat(rows)
    sent = rows_to(1, rows[rank], counts, group)
    back = rows_from(1, joined if rank else joined[:0], counts, group)
    parts = results_of(joined, counts, (4, 4), group)
    sums = scatter_sums(joined, counts, group)
    exchange = TokenExchange(group, NAME, 8, Counters())
    found = exchange.exchange(torch.full((2, 4), float(rank)))
    return [
        torch.equal(sent, joined if rank else joined[:0]),
        torch.equal(back, rows[rank]),
        torch.equal(gather_rows(rows[rank], counts, group), joined),
        all(torch.equal(part, rows[rank]) for part in parts),
        torch.equal(sums, 2 * rows[rank]),
        torch.equal(found, torch.tensor([[0.0] * 4 + [1.0] * 4])),
        torch.equal(exchange.gather(found, 2), found.expand(2, 8)),
    ]


def test_tokens_move_over_the_group_that_is_theirs(tmp_path):
    assert run_ranks(2, over_a_group_apart, tmp_path) == [[True] * 7] * 2


def _near(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """What stands between the ops may be rounded otherwise by a compiler; three layers of it."""
    return made.shape == expected.shape and torch.allclose(
        made.float(), expected.float(), atol=3 / 256, rtol=3 / 256
    )


def received(rank: int) -> tuple[int, int]:
    """Bytes that come to a rank: of two owners' layers 0, 1, 2, rank 0 has the first and last."""
    own = 2 if rank == 0 else 1
    weights = sum(KINDS) * (LAYERS - own) * IN * OUT * 2
    tokens = 0
    for load, moves_weights in zip(LOADS, KINDS, strict=True):
        if not moves_weights:
            tokens += own * load[1 - rank] * IN * 2 + (LAYERS - own) * load[rank] * OUT * 2
    return weights, tokens


@torch.inference_mode()
def within(rank: int) -> tuple[list[str], bool, bool]:
    """A host that captures graphs puts itself around the op, and around the two others."""
    model = Model("activations", None)
    model.now, x = (3, 3), tokens_of(rank, 3, IN, 0)
    plain = model(x)
    seen: list[str] = []

    def around(work: Any) -> Any:
        def wrapped(key: str, *given: Any) -> Any:
            seen.append(f"{key}: {[tuple(each.shape) for each in given if len(given) > 1]}")
            return work(key, *given)

        return wrapped

    run_linears_within(around)
    same = torch.equal(model(x), plain)
    run_linears_within(lambda work: work)
    return seen, same, torch.equal(model(x), plain)


def test_a_host_may_put_itself_around_the_op(tmp_path):
    """The room for the result is the caller's, and so its address."""
    shapes = [(3, IN), (OUT,), (3, OUT)]
    for seen, same, again in run_ranks(2, within, tmp_path):
        assert seen == [f"layers.{layer}.{NAME}: {shapes}" for layer in range(LAYERS)]
        assert same
        assert again


@pytest.mark.parametrize("compiled", [False, True])
def test_both_kinds_follow_each_other_and_are_counted(tmp_path, compiled):
    moved = sum(KINDS)
    for rank, seen in enumerate(run_ranks(2, forwards, tmp_path, compiled)):
        assert seen["equal"] == [True] * len(LOADS)
        assert seen["still"] == [not weights for weights in KINDS]
        assert seen["ended"] == len(LOADS)
        assert seen["forwards"] == (len(LOADS), len(LOADS) - moved)
        assert seen["movements"] == (moved * LAYERS, moved * LAYERS)
        assert seen["bytes"] == received(rank)


@torch.inference_mode()
def dies(rank: int, layer: int, told: Path) -> None:
    """Rank 1 dies instead of the product of this layer; the other writes what it is told."""
    model = Model("activations", None)
    model.now = (3, 3)
    model(torch.zeros(3, IN, dtype=torch.bfloat16))
    if rank == 1:
        die_at(model, layer)
    with pytest.raises(TransportError) as error:
        model(torch.zeros(3, IN, dtype=torch.bfloat16))
    told.write_text(str(error.value))


def die_at(model: Model, layer: int) -> None:
    """Where this rank computes a layer of its own, or at the boundary before another's."""

    def dying(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if model.series.owns(layer):
        bind_linear(MovedLinear(model.moving, layer, f"layers.{layer}.{NAME}", dying))
    else:
        model.series.transport.begin = dying  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (0, "layers.0.o_proj, owned by rank 0: its tokens could not be moved"),
        (1, "layers.1.o_proj, owned by rank 1: its results could not be moved"),
    ],
)
def test_a_rank_that_dies_is_told_with_the_linear_and_its_owner(tmp_path, layer, said):
    with pytest.raises(RankError, match="rank 1: crashed: exit code -9"):
        run_ranks(2, dies, tmp_path, layer, tmp_path / "told")
    told = (tmp_path / "told").read_text()
    assert f"rank 0: {said}: a rank of the group [0, 1] died or hangs" in told


@torch.inference_mode()
def rows_computed(rank: int) -> list[list[int]]:
    """How many rows each product of a forward has on this rank, forward by forward."""
    model = Model()
    seen: list[list[int]] = []

    def recording(layer: int) -> Any:
        module = model.shared[layer]

        def compute(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            seen[-1].append(len(x))
            return torch.nn.functional.linear(x, module.weight, bias)

        return compute

    for layer in range(LAYERS):
        name = f"layers.{layer}.{NAME}"
        bind_linear(MovedLinear(model.moving, layer, name, recording(layer)))
    for load in ((20, 8), (7, 7), (7, 1), (9, 20)):
        model.now = load
        seen.append([])
        model(tokens_of(rank, load[rank], IN, 0))
    return seen


def test_the_first_forward_that_moves_weights_needs_as_much_room_as_any_other(tmp_path):
    """A host measures it. Rank 0 owns layers 0 and 2, rank 1 owns layer 1."""
    gathered = (THRESHOLD - 1) * 2
    first, second = run_ranks(2, rows_computed, tmp_path)
    assert first == [[20, gathered, 20, 20], [gathered] * 2, [8] * 2, [9] * 3]
    assert second == [[8, 8, gathered, 8], [gathered], [8], [20] * 3]


def misled(rank: int, told: tuple[int, ...]) -> str:
    model = Model("activations", None)
    model.now = told
    with pytest.raises(MismatchError) as error, torch.inference_mode():
        model(torch.zeros(3, IN, dtype=torch.bfloat16))
    return str(error.value)


@pytest.mark.parametrize("told", [(4, 4), (3,), (3, 3, 3)])
def test_a_rank_whose_tokens_were_not_agreed_on_says_so_and_waits_for_nobody(tmp_path, told):
    for rank, said in enumerate(run_ranks(2, misled, tmp_path, told)):
        assert f"layers.0.{NAME}: rank {rank} has 3 tokens, and the ranks [0, 1] have" in said
        assert f"agreed on {list(told)}" in said
