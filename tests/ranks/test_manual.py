"""The manual API on plain torch modules: real ranks, real bytes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gloo.ranks import RankError, run_ranks
from gloo.stack import WIDTH, Stack, forwards, shard
from npu import FRACTAL_NZ, cast, stand_in
from vllm_layershard.errors import ConfigError, HostError, PlanError
from vllm_layershard.manual import (
    finish_loading,
    functions,
    reach_layer,
    register_layer,
    wait_layer,
)


@torch.inference_mode()
def equal_outputs(rank: int, num_layers: int, prefetch_step: int, start: int) -> dict:
    stack = Stack(num_layers, seed=7)
    return forwards(rank, shard(stack, prefetch_step, start, verify=True), stack, 3)


@pytest.mark.parametrize(
    ("size", "num_layers", "prefetch_step", "start"),
    [(2, 5, 1, 0), (2, 5, 0, 3), (3, 7, 3, 31), (3, 2, 1, 0), (4, 3, 2, 1), (2, 1, 0, 0)],
)
def test_outputs_equal_the_unsharded_stack(tmp_path, size, num_layers, prefetch_step, start):
    for rank, seen in enumerate(
        run_ranks(size, equal_outputs, tmp_path, num_layers, prefetch_step, start)
    ):
        assert seen["equal"] == [True, True, True]
        assert seen["addresses"] == 1
        assert seen["resident"] == seen["ledger"].resident_bytes[rank]
        assert seen["slots"] == seen["ledger"].slot_bytes
        assert seen["counters"].forwards == 3
        assert seen["counters"].launches == seen["counters"].waits == 3 * num_layers
        assert seen["in_flight"] == ()


@torch.inference_mode()
def in_a_group_that_does_not_begin_at_rank_0(rank: int) -> bool | None:
    group = dist.new_group([1, 2])
    if rank == 0:
        return None
    plain, stack = Stack(5, seed=7), Stack(5, seed=7)
    for i, linear in enumerate(stack.linears):
        register_layer(linear, series="linear", layer_id=i, group=group)
    series = finish_loading("linear", verify=True)
    series.slots.poison()
    x = torch.ones(2, WIDTH)
    return torch.equal(stack.sharded_forward(x), plain(x))


def test_an_owner_is_a_rank_of_its_group_not_of_the_world(tmp_path):
    assert run_ranks(3, in_a_group_that_does_not_begin_at_rank_0, tmp_path) == [None, True, True]


@torch.inference_mode()
def beside_another_series_and_other_collectives(rank: int) -> list[bool]:
    plain, stacks = ([Stack(4, seed=seed) for seed in (7, 8)] for _ in range(2))
    for name, stack in zip(("one", "two"), stacks, strict=True):
        for i, linear in enumerate(stack.linears):
            register_layer(linear, series=name, layer_id=i)
        finish_loading(name)
    x = torch.ones(2, WIDTH)
    expected = [stack(x) for stack in plain]
    right = []
    for _ in range(25):
        first = second = x
        for one, two in zip(*(stack.linears for stack in stacks), strict=True):
            reach_layer(one)
            reach_layer(two)
            total = torch.full((WIDTH, WIDTH), float(rank))
            dist.all_reduce(total)
            right.append(bool((total == 1).all()))
            wait_layer(one)
            first = torch.tanh(one(first))
            wait_layer(two)
            second = torch.tanh(two(second))
        right += [torch.equal(first, expected[0]), torch.equal(second, expected[1])]
    return right


def test_what_moves_is_not_taken_for_another_series_or_for_the_models_own_collectives(tmp_path):
    for right in run_ranks(2, beside_another_series_and_other_collectives, tmp_path):
        assert all(right)


@torch.inference_mode()
def built_anew(rank: int) -> list[Any]:
    """Another stack, whose layers may stand where the former ones did."""
    found: list[Any] = []
    for seed in (1, 2):
        stack, x = Stack(3, seed), torch.ones(1, WIDTH)
        shard(stack, prefetch_step=1)
        found += [
            len(functions._shardings),
            torch.equal(stack.sharded_forward(x), Stack(3, seed)(x)),
        ]
        del stack
        gc.collect()
        found.append(len(functions._shardings))
    return found


def test_nothing_is_kept_of_layers_that_are_gone(tmp_path):
    assert run_ranks(2, built_anew, tmp_path) == [[3, True, 0] * 2] * 2


@torch.inference_mode()
def change_an_owner(rank: int) -> list[bool]:
    stack = Stack(4, seed=7)
    series = shard(stack, prefetch_step=1)
    x = torch.ones(2, WIDTH)
    before = stack.sharded_forward(x)
    if rank == 0:
        series.resident[2]["weight"].mul_(1.5)  # layer 2 is rank 0's
    changed = stack.sharded_forward(x)
    return [torch.equal(before, changed), torch.isnan(changed).any().item()]


def test_an_owners_new_weight_reaches_the_other_rank(tmp_path):
    assert run_ranks(2, change_an_owner, tmp_path) == [[False, False], [False, False]]


def corrupt_a_slot(rank: int) -> None:
    stack = Stack(4, seed=7)
    series = shard(stack, prefetch_step=1, verify=True)
    if rank == 0:
        series.resident[2]["weight"].mul_(1.5)
    with torch.inference_mode():
        stack.sharded_forward(torch.ones(2, WIDTH))


def test_verify_names_the_layer_that_arrived_wrong(tmp_path):
    with pytest.raises(RankError, match="rank 1: layer 2 of series 'linear' arrived with other"):
        run_ranks(2, corrupt_a_slot, tmp_path)


def reloaded_before_its_first_arrival(rank: int) -> list[bool]:
    stack, other = Stack(4, seed=7), Stack(4, seed=8)
    series = shard(stack, prefetch_step=1, verify=True)
    with torch.inference_mode():
        for position, linear in enumerate(other.linears):
            new = stack.linears[position]
            new.weight = nn.Parameter(linear.weight.clone())
            new.bias.copy_(linear.bias)
            series.reload(position, new)
        x = torch.ones(2, WIDTH)
        return [torch.equal(stack.sharded_forward(x), other(x))]


def test_verify_takes_no_new_weight_for_a_fault(tmp_path):
    assert run_ranks(2, reloaded_before_its_first_arrival, tmp_path) == [[True]] * 2


def through_sleep(rank: int, level: int) -> list[bool]:
    """What a sleeping server's allocator does: bytes go, addresses stay.

    At level 1 the weights come back from CPU memory, at level 2 a reload brings them.
    """
    stack, plain = Stack(5, seed=7), Stack(5, seed=7 if level == 1 else 8)
    series = shard(stack, prefetch_step=1, verify=True)
    x = torch.ones(2, WIDTH)
    with torch.inference_mode():
        stack.sharded_forward(x)
        owned = [t for tensors in series.resident.values() for t in tensors.values()]
        kept = [tensor.clone() for tensor in owned]
        addresses = [linear.weight.data_ptr() for linear in stack.linears]
        series.slots.poison()
        for tensor in owned:
            tensor.fill_(torch.nan)
        if level == 1:
            for tensor, saved in zip(owned, kept, strict=True):
                tensor.copy_(saved)
        else:
            for position, linear in enumerate(plain.linears):
                new = stack.linears[position]
                new.weight = nn.Parameter(linear.weight.clone())
                new.bias.copy_(linear.bias)
                series.reload(position, new)
        return [
            torch.equal(stack.sharded_forward(x), plain(x)),
            torch.equal(stack.sharded_forward(x), plain(x)),
            addresses == [linear.weight.data_ptr() for linear in stack.linears],
        ]


@pytest.mark.parametrize("level", [1, 2])
def test_nothing_stale_is_served_after_sleep(tmp_path, level):
    assert run_ranks(2, through_sleep, tmp_path, level) == [[True] * 3] * 2


def other_layers(rank: int) -> None:
    shard(Stack(4 + rank, seed=7), prefetch_step=1)


def test_ranks_with_different_layers_all_get_the_same_error(tmp_path):
    with pytest.raises(RankError, match=r"rank 1 against rank 0: plan\.series\[0\]") as error:
        run_ranks(2, other_layers, tmp_path)
    assert error.value.kind == "MismatchError"


def test_an_option_of_the_wrong_type_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"slice_bytes = 1\.5: .* integer"):
        register_layer(nn.Linear(4, 4), series="a", layer_id=0, slice_bytes=1.5)


def refusals(rank: int) -> list[str]:
    messages = []

    def message(action, *args, **kwargs):
        with pytest.raises(PlanError, match="series") as error:
            action(*args, **kwargs)
        messages.append(str(error.value))

    first = nn.Linear(4, 4)
    register_layer(first, series="a", layer_id=0)
    message(register_layer, first, series="a", layer_id=1)
    message(register_layer, nn.Linear(4, 4), series="a", layer_id=0)
    message(register_layer, nn.Linear(4, 4), series="a", layer_id=1, prefetch_step=2)
    message(finish_loading, "b")
    message(reach_layer, first)
    message(finish_loading, "a")
    register_layer(nn.Linear(4, 4), series="c", layer_id=0, prefetch_step=0)
    register_layer(nn.Linear(4, 8), series="c", layer_id=1, prefetch_step=0)
    message(finish_loading, "c")
    return messages


def test_refusals_name_the_series_and_the_remedy(tmp_path):
    messages, _ = run_ranks(2, refusals, tmp_path)
    for message, part in zip(
        messages,
        [
            "registered already",
            "registered already",
            "a series has one of each",
            "call register_layer first",
            "belongs to no loaded series",
            "prefetch_step 1 needs at least 2",
            "layers are not alike",
        ],
        strict=True,
    ):
        assert part in message


def refused_format(rank: int) -> str:
    layers = [nn.Linear(4, 4, bias=False) for _ in range(4)]
    for layer in layers:
        cast(layer.weight, FRACTAL_NZ)
    functions._device = stand_in  # type: ignore[assignment]
    for layer_id, layer in enumerate(layers):
        register_layer(layer, series="a", layer_id=layer_id)
    with pytest.raises(HostError) as error:
        finish_loading("a")
    return str(error.value)


def test_weights_in_a_format_of_the_devices_own_are_refused(tmp_path):
    for rank, message in enumerate(run_ranks(2, refused_format, tmp_path)):
        assert f"layer {rank} of series 'a': its tensor 'weight' is in the device's" in message
        assert "FRACTAL_NZ (29)" in message
        assert '"weight_nz_mode": 0' in message
