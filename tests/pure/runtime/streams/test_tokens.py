"""Forwards that move tokens on simulated streams: eager, captured, in pieces, on both ranks."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from one_gpu.tokens import KINDS, Exchanging, Moving, Splitting, TokenStack
from simulated.nccl import Work
from simulated.scenarios import STEPS
from simulated.streams import Accelerator, Graph, Stream
from simulated.token_scenarios import SCENARIOS, Scenario, eager, faults, forward_of
from simulated.world import LAYERS, Kind, World
from vllm_layershard.runtime.moves.linear import MovedLinear

ON_OWN = {0: False, 1: True, 2: False}
"""By step, whether collectives run on streams of their own, as HCCL's do."""

NAMES = {
    Exchanging: ("all_to_all", "all_gather"),
    Splitting: ("all_gather", "reduce_scatter"),
    Moving: ("all_to_all", "all_to_all"),
}
"""What each layer does of tokens, in order."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_move_right_in_every_order_that_is_allowed(
    kind: Kind, scenario: Scenario, step: int
) -> None:
    assert list(faults(scenario, kind, step, own_streams=ON_OWN[step])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_replays_have_one_order_of_collectives(kind: Kind) -> None:
    """Ranks that disagree would wait for ever."""
    world = World(Accelerator(), kind, 1)
    given = world.given(kind.loads[0], 0)
    world.on_each(lambda stack, rank: forward_of(stack, given, rank))

    def capture(stack: TokenStack, rank: int) -> tuple[Graph, torch.Tensor]:
        return world.capture(lambda: forward_of(stack, given, rank))

    graphs = world.on_each(capture)
    once = [list(member.log) for member in world.tokens.members]
    assert [call.name for call in once[0]] == [*NAMES[kind] * LAYERS], "a capture runs nothing"
    for _ in range(2):
        world.on_each(lambda stack, rank: graphs[rank][0].replay())
    assert [member.log for member in world.tokens.members] == [once[0] * 3] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_move_on_the_compute_stream(kind: Kind) -> None:
    """On another one the compute would have to wait for them, and they for the compute."""
    world = World(Accelerator(), kind, 1)
    given = world.given(kind.loads[0], 0)
    world.on_each(lambda stack, rank: forward_of(stack, given, rank))

    def capture(stack: TokenStack, rank: int) -> Stream:
        def forward() -> Stream:
            forward_of(stack, given, rank)
            return world.accelerator.current_stream()

        return world.capture(forward)[1]

    captured_on = world.on_each(capture)
    count = LAYERS * len(NAMES[kind])
    for rank, member in enumerate(world.tokens.members):
        assert member.given_on == [world.compute[rank]] * count + [captured_on[rank]] * count


@pytest.mark.parametrize(("kind", "scenario"), [*product(KINDS, SCENARIOS)])
def test_without_the_waits_of_collectives_some_order_is_wrong(
    kind: Kind, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the simulation would say of a collective that nobody waits for."""
    monkeypatch.setattr(Work, "wait", lambda work: None)
    assert next(faults(scenario, kind, 1, own_streams=True), None) is not None


def test_without_the_wait_for_a_weight_some_order_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a linear to which tokens may move; then no op of its own waits."""
    monkeypatch.setattr(MovedLinear, "_wait", lambda linear: None)
    assert next(faults(eager, Moving, 1), None) is not None


def test_ranks_whose_collectives_come_in_other_orders_are_named() -> None:
    world = World(Accelerator(), Splitting, 1)
    options = type("Options", (), {"asyncOp": False})
    x = torch.zeros(4)

    def gather(rank: int) -> None:
        world.tokens.members[rank].all_gather_single(torch.zeros(8), x, options)

    def scatter(rank: int) -> None:
        world.tokens.members[rank].reduce_scatter_single(torch.zeros(2), x, options)

    def give(stack: TokenStack, rank: int) -> None:
        for work in (gather, scatter)[:: 1 - 2 * rank]:
            work(rank)

    with pytest.raises(AssertionError, match=r"collective 0: rank \d Call\(name='[a-z_]+'"):
        world.on_each(give)


def test_a_rank_that_is_left_alone_waits() -> None:
    world = World(Accelerator(), Splitting, 1)
    given = world.given((2, 2), 0)
    with pytest.raises(AssertionError, match="streams wait for each other"):
        world.on_each(lambda stack, rank: None if rank else forward_of(stack, given, rank))
