"""Dense MLPs in parts over real ranks: for any load every rank gets what the whole MLP makes of it.

What is compared with is the same split in one process. Two partial sums have one order, four have
several: there a tolerance stands for the order in which gloo adds them.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import linear, silu

from gloo.ranks import RankError, run_ranks
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.ffn import FfnSplit

HIDDEN, WIDTH = 24, 32

LOADS = [
    (1, 1, 1, 1),
    (3, 0, 5, 2),
    (0, 0, 0, 0),
    (0, 7, 0, 7),
    (64, 1, 1, 64),
    (17, 17, 17, 17),
    (2, 3, 0, 0),
    (1, 257, 3, 1),
]
"""Tokens of each of four ranks in one forward after another; of two ranks the first two."""


def weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate, up and down of the whole MLP: the same on every rank."""
    draw = torch.Generator().manual_seed(7)
    gate, up = (torch.randn(WIDTH, HIDDEN, generator=draw).bfloat16() for _ in range(2))
    return gate, up, torch.randn(HIDDEN, WIDTH, generator=draw).bfloat16()


def tokens_of(rank: int, forward: int, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1000 * forward + rank)
    return torch.randn(count, HIDDEN, generator=draw).bfloat16()


def part_of(part: int, parts: int, x: torch.Tensor) -> torch.Tensor:
    """What one part of the MLP makes of all rows."""
    gate, up, down = weights()
    columns = slice(part * WIDTH // parts, (part + 1) * WIDTH // parts)
    return linear(silu(linear(x, gate[columns])) * linear(x, up[columns]), down[:, columns])


def made_of(counts: tuple[int, ...], ranks: tuple[int, ...], forward: int) -> list[torch.Tensor]:
    """By group rank, what the split in one process makes of a forward's tokens."""
    x = torch.cat([tokens_of(rank, forward, counts[rank]) for rank in ranks])
    total = sum(part_of(part, len(ranks), x) for part in range(len(ranks)))
    return list(total.split([counts[rank] for rank in ranks]))


def computed(rank: int, size: int, compiled: bool) -> list[tuple[bool, float]]:
    """For each forward, whether this rank's rows are equal, and how far they are at most."""
    from vllm_layershard.runtime.moves.ops import order_on
    from vllm_layershard.runtime.ranks.group import create_groups
    from vllm_layershard.runtime.split_mlp import SplitMlp, bind_mlps

    split = FfnSplit(ParallelLayout(dp=dist.get_world_size()), size)
    (group,) = create_groups(split.groups(), "gloo").values()
    counts: list[tuple[int, ...]] = [()]

    def agreed() -> list[int]:
        first = split.first_of(rank)
        return list(counts[0][first : first + size])

    mlp = SplitMlp("layers.0.mlp", group, partial(part_of, split.part_of(rank), size), agreed)
    bind_mlps([mlp])
    order = order_on(torch.device("cpu"))

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.layershard.ffn(x, order, "layers.0.mlp")

    run = torch.compile(forward, dynamic=True, fullgraph=True) if compiled else forward
    found = []
    with torch.inference_mode():
        for number, load in enumerate(LOADS):
            counts[0] = load
            x = tokens_of(rank, number, load[rank])
            given = x.clone()
            y = run(x)
            expected = made_of(load, group.ranks, number)[group.group_rank]
            assert torch.equal(x, given), "the op wrote to what it was given"
            assert y.shape == expected.shape
            assert y.is_contiguous()
            far = float((y.float() - expected.float()).abs().max()) if y.numel() else 0.0
            found.append((torch.equal(y, expected), far))
    assert mlp.forwards == len(LOADS)
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_groups_of_two_equal_the_same_split_in_one_process(tmp_path, ranks, compiled):
    """Of four ranks, two groups of two: each computes for its own tokens alone."""
    for rank, seen in enumerate(run_ranks(ranks, computed, tmp_path, 2, compiled)):
        assert [equal for equal, _ in seen] == [True] * len(LOADS), (rank, seen)


def test_a_group_of_four_equals_it_to_the_order_of_three_sums(tmp_path):
    """A sum of bfloat16 is rounded to 1/256 of it, and four parts have three sums."""
    most = max(
        float(part.abs().max())
        for number, load in enumerate(LOADS)
        for part in made_of(load, (0, 1, 2, 3), number)
        if part.numel()
    )
    for seen in run_ranks(4, computed, tmp_path, 4, False):
        assert max(far for _, far in seen) <= 3 * most / 256
        assert any(equal for equal, _ in seen)


def compiled_between(rank: int, dynamic: bool) -> dict[str, object]:
    """Two MLPs with other kernels before and behind them, compiled: all counts of `LOADS`."""
    from vllm_layershard.runtime.moves.ops import order_on
    from vllm_layershard.runtime.ranks.group import create_groups
    from vllm_layershard.runtime.split_mlp import SplitMlp, bind_mlps, ffn

    split = FfnSplit(ParallelLayout(dp=2), 2)
    (group,) = create_groups(split.groups(), "gloo").values()
    counts: list[tuple[int, ...]] = [()]
    compute = partial(part_of, split.part_of(rank), 2)
    mlps = [SplitMlp(f"layers.{i}.mlp", group, compute, lambda: counts[0]) for i in range(2)]
    bind_mlps(mlps)
    order = order_on(torch.device("cpu"))

    def forward(x: torch.Tensor) -> torch.Tensor:
        for mlp in mlps:
            x = ffn(-x, order, mlp.name).neg()
        return x

    run = torch.compile(forward, dynamic=dynamic, fullgraph=True)
    equal = []
    with torch.inference_mode():
        for number, load in enumerate(LOADS):
            counts[0] = load[:2]
            y = run(tokens_of(rank, number, load[rank]))
            joined = torch.cat([tokens_of(r, number, load[r]) for r in range(2)])
            for _ in mlps:
                joined = -(part_of(0, 2, -joined) + part_of(1, 2, -joined))
            equal.append(torch.equal(y, joined.split(list(counts[0]))[rank]))
    return {"equal": equal, "forwards": [mlp.forwards for mlp in mlps]}


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_compiled_rank_without_tokens_comes_to_every_mlp(tmp_path, dynamic):
    """Nobody reads results of no rows; the other rank waits for them all the same."""
    for seen in run_ranks(2, compiled_between, tmp_path, dynamic):
        assert seen == {"equal": [True] * len(LOADS), "forwards": [len(LOADS)] * 2}


def over_tensor_parallel_ranks(rank: int) -> list[bool]:
    """Two data-parallel ranks of two tensor-parallel ones: four parts, and the sums of both."""
    from vllm_layershard.runtime.ranks.group import create_groups
    from vllm_layershard.runtime.split_mlp import SplitMlp

    split = FfnSplit(ParallelLayout(tp=2, dp=2), 2)
    (group,) = create_groups(split.groups(), "gloo").values()
    (engine,) = create_groups([(0, 1), (2, 3)], "gloo").values()
    counts: list[tuple[int, ...]] = [()]

    def summed(own: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(own, group=engine.data)
        return own

    compute = partial(part_of, split.part_of(rank), split.parts)
    mlp = SplitMlp("layers.0.mlp", group, compute, lambda: counts[0], summed)
    found = []
    for number, (first, second, *_) in enumerate(LOADS):
        counts[0] = (first, second)
        both = [tokens_of(dp, number, count) for dp, count in enumerate(counts[0])]
        x = torch.cat(both)
        of_tp = [part_of(2 * tp, 4, x) + part_of(2 * tp + 1, 4, x) for tp in range(2)]
        expected = (of_tp[0] + of_tp[1]).split([first, second])[rank // 2]
        found.append(torch.equal(mlp(both[rank // 2]), expected))
    return found


def test_under_tensor_parallelism_each_rank_splits_its_own_part(tmp_path):
    for seen in run_ranks(4, over_tensor_parallel_ranks, tmp_path):
        assert seen == [True] * len(LOADS)


def disagrees(rank: int, told: tuple[int, ...]) -> str:
    from vllm_layershard.errors import MismatchError
    from vllm_layershard.runtime.ranks.group import create_groups
    from vllm_layershard.runtime.split_mlp import SplitMlp

    (group,) = create_groups([(0, 1)], "gloo").values()
    mlp = SplitMlp("layers.0.mlp", group, lambda x: x, lambda: told)
    with pytest.raises(MismatchError) as error:
        mlp(torch.zeros(3, HIDDEN))
    return str(error.value)


@pytest.mark.parametrize("told", [(4, 4), (3,), (), (3, 3, 3)])
def test_a_rank_whose_tokens_were_not_agreed_on_says_so_and_waits_for_nobody(tmp_path, told):
    for rank, said in enumerate(run_ranks(2, disagrees, tmp_path, told)):
        assert f"rank {rank} has [3] tokens for layers.0.mlp, and the ranks [0, 1] have" in said
        assert f"agreed on {list(told)}" in said


def left_alone(rank: int) -> None:
    from vllm_layershard.runtime.ranks.group import create_groups
    from vllm_layershard.runtime.split_mlp import SplitMlp

    (group,) = create_groups([(0, 1)], "gloo").values()
    mlp = SplitMlp("layers.0.mlp", group, lambda x: x, lambda: (3, 3))
    if rank == 1:
        dist.destroy_process_group(group.data)
        return
    mlp(torch.zeros(3, HIDDEN))


def test_a_rank_that_is_left_alone_names_the_mlp_and_the_group(tmp_path):
    with pytest.raises(RankError) as error:
        run_ranks(2, left_alone, tmp_path)
    assert error.value.kind == "TransportError"
    assert "rank 0: layers.0.mlp: no tokens came: a rank of the group [0, 1] died" in (
        error.value.text
    )
