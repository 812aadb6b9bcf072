"""LayerSharding on plain torch modules: real ranks, real bytes."""

from __future__ import annotations

import gc
import re
import resource
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gloo.ranks import RankError, run_ranks
from npu import FRACTAL_NZ, cast, stand_in
from vllm_layershard.errors import ConfigError, HostError, LayerShardError, MismatchError, PlanError
from vllm_layershard.manual import (
    Lane,
    LayerSharding,
    finish_loading,
    reach_layer,
    register_layer,
    wait_layer,
)
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.ranks.group import create_groups

WIDTH, LAYERS = 32, 5


def layers(seed: int, width: int = WIDTH) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Linear(width, WIDTH) for _ in range(LAYERS))


def sharding_of(linears: nn.ModuleList, *, verify: bool = True, **options: Any) -> LayerSharding:
    sharding = LayerSharding(**options)
    for layer_id, linear in enumerate(linears):
        sharding.add(linear, layer_id=layer_id)
    sharding.finish(verify=verify)
    return sharding


def forward(linears: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for linear in linears:
        x = torch.tanh(linear(x))
    return x


def sharded_forward(sharding: LayerSharding, linears: nn.ModuleList, x: torch.Tensor):
    for linear in linears:
        sharding.start(linear)
        sharding.wait(linear)
        x = torch.tanh(linear(x))
    return x


OPTIONS: list[dict[str, Any]] = [
    {},
    {"prefetch_step": 0},
    {"prefetch_step": 2, "transport": "pull"},
    {"placement": "striped", "slice_bytes": 1000},
    {"placement": "replicated"},
]


@torch.inference_mode()
def with_every_option(
    rank: int, group: dist.ProcessGroup | None = None, *, verify: bool = True
) -> list[list[bool]]:
    found = []
    for options in OPTIONS:
        linears = layers(7)
        sharding = sharding_of(linears, verify=verify, group=group, **options)
        (series,) = sharding.series.values()
        equal = []
        for seed in range(3):
            x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * rank + seed))
            series.slots.poison()
            equal.append(torch.equal(sharded_forward(sharding, linears, x), forward(layers(7), x)))
        ledger = series.plan.ledger
        found.append(
            [
                *equal,
                series.counters.forwards == 3,
                series.resident_bytes() == ledger.resident_bytes[dist.get_rank(group)],
                series.slots.nbytes() == ledger.slot_bytes,
            ]
        )
    return found


def test_outputs_equal_the_unsharded_layers_under_every_option(tmp_path):
    for found in run_ranks(3, with_every_option, tmp_path):
        assert found == [[True] * 6] * len(OPTIONS)


ORDERS = ([2, 0], [2, 0, 1])
"""Of a group whose ranks do not ascend: reversed, and neither way."""


def in_the_given_order(rank: int) -> list[list[list[bool]]]:
    groups = [dist.new_group(order, sort_ranks=False) for order in ORDERS]
    return [
        with_every_option(rank, group, verify=verify)
        for order, group in zip(ORDERS, groups, strict=True)
        if rank in order
        for verify in (False, True)
    ]


def test_a_group_keeps_the_order_that_it_was_given(tmp_path):
    both, one, two = run_ranks(3, in_the_given_order, tmp_path)
    right = [[True] * 6] * len(OPTIONS)
    assert both == two == [right] * 4
    assert one == [right] * 2


def created_in_the_given_order(rank: int) -> list[int | list[int]]:
    group = create_groups([(2, 0, 1)], "gloo")[0]
    sent = torch.tensor([rank])
    group.broadcast(sent, owner=0)
    return [group.gather(rank), group.group_rank, dist.get_rank(group.data), int(sent)]


def test_a_group_that_is_created_keeps_the_order_that_it_was_given(tmp_path):
    found = run_ranks(3, created_in_the_given_order, tmp_path)
    assert found == [[[2, 0, 1], place, place, 2] for place in (1, 2, 0)]


class Model(nn.Module):
    """Two kinds of sharded linears in each layer; holds its own sharding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.narrow, self.wide = layers(seed), layers(seed + 1, 2 * WIDTH)
        self.sharding = LayerSharding(prefetch_step=1)

    def shard(self) -> LayerSharding:
        for layer_id, (narrow, wide) in enumerate(zip(self.narrow, self.wide, strict=True)):
            self.sharding.add(narrow, layer_id=layer_id, series="narrow")
            self.sharding.add(wide, layer_id=layer_id, series="wide")
        loaded = self.sharding.finish()
        assert list(loaded) == ["narrow", "wide"]
        for series in loaded.values():
            series.slots.poison()
        return self.sharding

    def forward(self, x: torch.Tensor, *, sharded: bool) -> torch.Tensor:
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            if sharded:
                self.sharding.start(narrow)
                self.sharding.start(wide)
                self.sharding.wait(narrow)
            x = torch.tanh(narrow(x))
            if sharded:
                self.sharding.wait(wide)
            x = torch.tanh(wide(torch.cat([x, x], dim=-1)))
        return x


@torch.inference_mode()
def two_series(rank: int) -> list[bool]:
    model, x = Model(7), torch.ones(2, WIDTH)
    sharding = model.shard()
    narrow, wide = sharding.series.values()
    right = [narrow.group is wide.group]
    right += [torch.equal(model(x, sharded=True), Model(7)(x, sharded=False)) for _ in range(3)]
    return [*right, side_streams() == 1]


def side_streams() -> int:
    """On the CPU each is a thread."""
    return sum(thread.name == "layershard-side" for thread in threading.enumerate())


def test_series_of_one_sharding_move_on_one_side_stream(tmp_path):
    assert run_ranks(2, two_series, tmp_path) == [[True] * 5] * 2


@torch.inference_mode()
def two_objects(rank: int) -> list[bool]:
    """The ranks run the two models in different orders: what moves must not be mistaken."""
    x = torch.ones(2, WIDTH)
    shared = [layers(seed) for seed in (7, 8)]
    shardings = [sharding_of(linears) for linears in shared]
    expected = [forward(layers(seed), x) for seed in (7, 8)]
    right = []
    for turn in range(20):
        outputs = {}
        for one in (0, 1) if (rank + turn) % 2 else (1, 0):
            outputs[one] = x
        for linear in range(LAYERS):
            for one in outputs:
                shardings[one].start(shared[one][linear])
            for one in outputs:
                module = shared[one][linear]
                shardings[one].wait(module)
                outputs[one] = torch.tanh(module(outputs[one]))
            total = torch.full((WIDTH, WIDTH), float(rank))
            dist.all_reduce(total)
            right.append(bool((total == 1).all()))
        right += [torch.equal(outputs[one], expected[one]) for one in (0, 1)]
    (first,), (second,) = (sharding.series for sharding in shardings)
    return [*right, first == second == "linear", side_streams() == 2]


def test_two_shardings_of_one_group_do_not_mix_what_moves(tmp_path):
    for right in run_ranks(2, two_objects, tmp_path):
        assert len(right) == 20 * (LAYERS + 2) + 2
        assert all(right)


@torch.inference_mode()
def on_one_lane(rank: int) -> list[bool]:
    lanes: list[Lane] = []

    def lane(group):
        lanes[:] = lanes or [Lane(group)]
        return lanes[0]

    x = torch.ones(2, WIDTH)
    models = [layers(seed) for seed in (7, 8)]
    near, far = (
        sharding_of(linears, prefetch_step=step, lane=lane)
        for linears, step in zip(models, (0, 3), strict=True)
    )
    (one,), (other,) = near.series.values(), far.series.values()
    return [
        one.group is other.group,
        torch.equal(sharded_forward(near, models[0], x), forward(layers(7), x)),
        torch.equal(sharded_forward(far, models[1], x), forward(layers(8), x)),
        side_streams() == 1,
    ]


def test_two_shardings_may_share_a_lane(tmp_path):
    assert run_ranks(2, on_one_lane, tmp_path) == [[True] * 4] * 2


@torch.inference_mode()
def within_a_group(rank: int) -> Any:
    group = dist.new_group([1, 2])
    if rank == 0:
        with pytest.raises(PlanError) as error:
            LayerSharding(group=group)
        return str(error.value)
    linears, x = layers(7), torch.ones(2, WIDTH)
    sharding = sharding_of(linears, group=group)
    return torch.equal(sharded_forward(sharding, linears, x), forward(layers(7), x))


@torch.inference_mode()
def in_groups_that_overlap(rank: int) -> list[bool]:
    """Rank 0 is in fewer process groups than the others when the world's are formed."""
    x, right = torch.ones(2, WIDTH), []
    two = dist.new_group([1, 2])
    for seed, group in ((7, two), (8, None)) if rank else ((8, None),):
        linears = layers(seed)
        sharding = sharding_of(linears, group=group)
        right.append(torch.equal(sharded_forward(sharding, linears, x), forward(layers(seed), x)))
    return right


def test_shardings_of_groups_that_overlap_find_their_ranks(tmp_path):
    assert run_ranks(3, in_groups_that_overlap, tmp_path) == [[True], [True] * 2, [True] * 2]


def test_a_group_is_for_its_own_ranks(tmp_path):
    refused, *equal = run_ranks(3, within_a_group, tmp_path)
    assert "rank 0 is not in the process group that it was given" in refused
    assert equal == [True, True]


@torch.inference_mode()
def dropped(rank: int) -> list[bool]:
    gone = []
    for drop_first in ("model", "both"):
        model = Model(7)
        sharding = model.shard()
        series = weakref.ref(sharding.series["narrow"])
        slot = weakref.ref(sharding.series["narrow"].slots.tensors[0][0])
        layer = weakref.ref(model.narrow[0])
        model(torch.ones(1, WIDTH), sharded=True)
        gc.disable()  # no cycle leads to a layer or to its memory
        del model
        if drop_first == "model":
            gone.append(layer() is None)
        del sharding
        gone += [layer() is None, series() is None, slot() is None]
        gc.enable()
    return gone


def test_a_model_that_holds_its_sharding_ends_with_it(tmp_path):
    assert run_ranks(2, dropped, tmp_path) == [[True] * 7] * 2


def refusals(rank: int) -> dict[str, str]:
    messages: dict[str, str] = {}

    def refused(name: str, action: Any, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(PlanError) as error:
            action(*args, **kwargs)
        messages[name] = str(error.value)

    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    sharding = LayerSharding()
    sharding.add(first, layer_id=0)
    refused("same layer", sharding.add, first, layer_id=1)
    refused("same layer, other series", sharding.add, first, layer_id=0, series="other")
    refused("same layer, other object", LayerSharding().add, first, layer_id=0)
    refused("same index", sharding.add, second, layer_id=0)
    tied = nn.Linear(4, 4)
    tied.bias = first.bias if rank == 0 else second.bias
    if rank == 0:  # it owns layer 0, so `first` still has the tensor that it came with
        refused("tied", sharding.add, tied, layer_id=1)
        refused("tied, other object", LayerSharding().add, tied, layer_id=1)
        refused("tied, function", register_layer, tied, series="tied", layer_id=1)
    refused("container", sharding.add, nn.Sequential(nn.Linear(4, 4)), layer_id=1)
    refused("start before finish", sharding.start, first)
    refused("wait before finish", sharding.wait, first)
    sharding.add(second, layer_id=1)
    sharding.finish()
    refused("wait before start", sharding.wait, second)
    refused("finish twice", sharding.finish)
    refused("add after finish", sharding.add, nn.Linear(4, 4), layer_id=2)
    refused("unknown layer", sharding.start, nn.Linear(4, 4))
    refused("unknown layer waits", sharding.wait, nn.Linear(4, 4))
    refused("loaded layer", LayerSharding().add, first, layer_id=0)
    refused("loaded layer, function", register_layer, first, series="again", layer_id=0)
    refused("nothing", LayerSharding().finish)
    alone = LayerSharding(prefetch_step=1)
    alone.add(nn.Linear(4, 4), layer_id=0)
    refused("step", alone.finish)
    refused("finish after it failed", alone.finish)
    unlike = LayerSharding(prefetch_step=0)
    unlike.add(nn.Linear(4, 4), layer_id=0, series="c")
    unlike.add(nn.Linear(4, 8), layer_id=1, series="c")
    refused("unlike", unlike.finish)
    with pytest.raises(HostError) as error:
        LayerSharding().add(nn.Linear(4, 4, device="meta"), layer_id=0)
    messages["meta"] = str(error.value)
    return messages


def test_each_refusal_says_what_and_the_remedy(tmp_path):
    registered = "is registered already"
    tied = "shares a tensor with a layer that is registered already"
    unloaded = "Linear belongs to no loaded series of this sharding; add it, and call finish first"
    twice = "finish was called already; make another LayerSharding"
    expected = {
        "same layer": f"series 'linear': layer 1 {registered}",
        "same layer, other series": f"series 'other': layer 0 {registered}",
        "same layer, other object": f"series 'linear': layer 0 {registered}",
        "same index": f"series 'linear': layer 0 {registered}",
        "tied": f"series 'linear': layer 1 {tied}",
        "tied, other object": f"series 'linear': layer 1 {tied}",
        "tied, function": f"series 'tied': layer 1 {tied}",
        "container": "layer 1 holds no tensor itself; register the module that holds the weight",
        "start before finish": unloaded,
        "wait before finish": unloaded,
        "wait before start": "layer 1 of series 'linear' is waited for and was not started; start",
        "finish twice": twice,
        "add after finish": "series 'linear': layer 2 comes after finish; add it before, or to",
        "unknown layer": unloaded,
        "unknown layer waits": unloaded,
        "loaded layer": f"series 'linear': layer 0 {registered}",
        "loaded layer, function": f"series 'again': layer 0 {registered}",
        "nothing": "finish was called and no series has a layer; call add",
        "step": "prefetch_step 1 needs at least 2",
        "finish after it failed": twice,
        "unlike": "series 'c': its layers are not alike",
        "meta": "device meta: layer sharding moves weights on cpu, cuda and npu devices only",
    }
    one, other = run_ranks(2, refusals, tmp_path)
    assert one.keys() == expected.keys()
    assert other.keys() == {name for name in expected if not name.startswith("tied")}
    for messages in (one, other):
        for name, message in messages.items():
            assert expected[name] in message, name


NO_INDEX: list[Any] = [-1, "0", None, 0.5, True, [0]]
NO_LAYER: list[Any] = [None, 1, torch.zeros(2), nn.Linear]
NO_NAME: list[Any] = [None, 3, ["linear"]]


def of_another_kind(rank: int) -> list[str]:
    """A refused call has no effect: the right one is taken afterwards."""
    linears, sharding = layers(7), LayerSharding()
    first, last = linears[0], linears[-1]
    calls: list[Callable[[], Any]] = [
        *(partial(sharding.add, first, layer_id=value) for value in NO_INDEX),
        *(partial(register_layer, first, series="a", layer_id=value) for value in NO_INDEX),
        *(partial(sharding.add, value, layer_id=0) for value in NO_LAYER),
        *(partial(register_layer, value, series="a", layer_id=0) for value in NO_LAYER),
        *(partial(sharding.add, first, layer_id=0, series=value) for value in NO_NAME),
        *(partial(register_layer, first, series=value, layer_id=0) for value in NO_NAME),
        *(partial(finish_loading, value) for value in NO_NAME),
    ]
    used = (sharding.start, sharding.wait, reach_layer, wait_layer)
    calls += [partial(call, value) for call in used for value in NO_LAYER]
    said = []
    for call in calls:
        with pytest.raises(PlanError) as error:
            call()
        said.append(str(error.value))
    for layer_id, linear in enumerate(linears):
        sharding.add(linear, layer_id=layer_id)
    sharding.finish()
    with torch.inference_mode():
        sharded_forward(sharding, linears, torch.ones(1, WIDTH))
        assert torch.equal(last.weight, layers(7)[-1].weight)
    return said


def test_arguments_of_another_kind_are_refused_before_any_effect(tmp_path):
    index, layer, name = (
        "is no layer index; pass a whole number",
        "is no layer; pass the nn.Module",
        "is named by text; pass a str",
    )
    counts = [
        (index, 2 * len(NO_INDEX)),
        (layer, 2 * len(NO_LAYER)),
        (name, 3 * len(NO_NAME)),
        (layer, 4 * len(NO_LAYER)),
    ]
    expected = [part for part, count in counts for _ in range(count)]
    for said in run_ranks(2, of_another_kind, tmp_path):
        assert len(said) == len(expected)
        assert [part in each for part, each in zip(expected, said, strict=True)] == [True] * 45


REPLACED: dict[str, Callable[[nn.ModuleList], Any]] = {
    "half": lambda linears: linears.half(),
    "half and back": lambda linears: linears.half().float(),
    "double": lambda linears: linears.double(),
    "assign": lambda linears: linears.load_state_dict(layers(8).state_dict(), assign=True),
    "parameter": lambda linears: [
        setattr(linear, "weight", nn.Parameter(linear.weight.clone())) for linear in linears
    ],
}
"""What gives each layer other tensors."""


@torch.inference_mode()
def with_other_tensors(rank: int) -> list[list[str]]:
    said: list[list[str]] = []
    for options in OPTIONS:
        for replace in REPLACED.values():
            linears = layers(7)
            sharding = sharding_of(linears, verify=False, **options)
            with torch.inference_mode(mode=False):
                replace(linears)
            said.append([])
            for linear in linears:
                sharding.start(linear)
                with pytest.raises(PlanError) as error:
                    sharding.wait(linear)
                said[-1].append(str(error.value))
    return said


def test_a_layer_whose_tensors_were_replaced_is_named(tmp_path):
    for said in run_ranks(2, with_other_tensors, tmp_path):
        assert len(said) == len(OPTIONS) * len(REPLACED)
        for messages in said:
            assert len(messages) == LAYERS
            for layer_id, message in enumerate(messages):
                part = f"layer {layer_id} of series 'linear': its tensor 'weight' was replaced"
                assert part in message


@torch.inference_mode()
def with_the_same_tensors(rank: int) -> bool:
    """What changes nothing replaces nothing."""
    linears, x = layers(7), torch.ones(2, WIDTH)
    sharding = sharding_of(linears)
    with torch.inference_mode(mode=False):
        linears.float().to("cpu").eval().requires_grad_(False)
    return torch.equal(sharded_forward(sharding, linears, x), forward(layers(7), x))


def test_a_cast_to_the_same_type_is_no_replacement(tmp_path):
    assert run_ranks(2, with_the_same_tensors, tmp_path) == [True, True]


def with_gradients(rank: int) -> list[bool]:
    linears, x = layers(7), torch.ones(2, WIDTH)
    sharding = sharding_of(linears)
    with pytest.raises(PlanError, match=r"layer 0 of series 'linear': started with gradients ena"):
        sharding.start(linears[0])
    expected = forward(layers(7), x)
    with torch.no_grad():
        equal = [torch.equal(sharded_forward(sharding, linears, x), expected)]
    linears.requires_grad_(False)
    return [*equal, torch.equal(sharded_forward(sharding, linears, x), expected)]


def test_a_layer_is_not_started_where_its_gradients_are_wanted(tmp_path):
    assert run_ranks(2, with_gradients, tmp_path) == [[True] * 2] * 2


def test_values_and_a_missing_process_group_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"prefetch_step = -1"):
        LayerSharding(prefetch_step=-1)
    with pytest.raises(PlanError, match=r"no process group; call init_process_group before"):
        LayerSharding()


def other_layers(rank: int) -> None:
    sharding = LayerSharding()
    for layer_id in range(3 + rank):
        sharding.add(nn.Linear(4, 4), layer_id=layer_id)
    sharding.finish()


def test_ranks_with_different_layers_all_get_the_same_error(tmp_path):
    with pytest.raises(RankError, match=r"rank 1 against rank 0: plan\.series\[0\]") as error:
        run_ranks(2, other_layers, tmp_path)
    assert error.value.kind == "MismatchError"


UNLIKE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"verify": False}, {"verify": True}, "configuration.verify: False != True"),
    ({"transport": "broadcast"}, {"transport": "pull"}, "configuration.transport: "),
    ({"placement": "striped"}, {"placement": "round_robin"}, "configuration.placement: "),
    ({"placement": "round_robin"}, {"placement": "replicated"}, "configuration.placement: "),
    ({"slice_bytes": 0}, {"slice_bytes": 64}, "configuration.slice_bytes: 0 != 64"),
    ({"prefetch_step": 1}, {"prefetch_step": 2}, "configuration.prefetch_step: 1 != 2"),
]
"""What ranks 0 and 1 are given, and what the error says of it."""


def with_other_options(rank: int) -> list[str]:
    said = []
    for *given, _ in UNLIKE:
        with pytest.raises(MismatchError) as error:
            sharding_of(layers(7), **({"verify": False} | given[rank]))
        said.append(str(error.value))
    return said


def test_ranks_with_different_options_all_get_the_same_error(tmp_path):
    one, other = run_ranks(2, with_other_options, tmp_path)
    assert one == other
    for said, (_, _, part) in zip(one, UNLIKE, strict=True):
        assert f"rank 1 against rank 0: {part}" in said


def a_format_of_the_devices_own(rank: int) -> LayerSharding:
    sharding = LayerSharding(lane=lambda group: Lane(group, stand_in))
    for layer_id in range(4):
        linear = nn.Linear(4, 4)
        if (rank, layer_id) == (1, 1):
            cast(linear.weight, FRACTAL_NZ)
        sharding.add(linear, layer_id=layer_id)
    return sharding


def too_few_layers(rank: int) -> LayerSharding:
    sharding = LayerSharding(prefetch_step=1)
    for layer_id in range(3 - 2 * rank):
        sharding.add(nn.Linear(4, 4), layer_id=layer_id)
    return sharding


def unlike_layers(rank: int) -> LayerSharding:
    sharding = LayerSharding()
    for layer_id in range(3):
        sharding.add(nn.Linear(4, 4 + rank * layer_id), layer_id=layer_id)
    return sharding


def no_layer(rank: int) -> LayerSharding:
    sharding = LayerSharding()
    for layer_id in range(3 - 3 * rank):
        sharding.add(nn.Linear(4, 4), layer_id=layer_id)
    return sharding


def no_shared_memory(rank: int) -> LayerSharding:
    sharding = LayerSharding(transport="pull")
    for layer_id in range(2):
        sharding.add(nn.Linear(1024, 1024), layer_id=layer_id)
    if rank == 1:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, hard))
    return sharding


def a_shared_memory_of_its_own(rank: int) -> LayerSharding:
    """The other rank has nothing to read from this one."""
    sharding = LayerSharding(transport="pull", prefetch_step=0)
    sharding.add(nn.Linear(4, 4), layer_id=0)
    if rank == 1:
        shared_memory.DIRECTORY = Path(tempfile.mkdtemp(dir=shared_memory.DIRECTORY))
    return sharding


ALONE: dict[Callable[[int], LayerSharding], tuple[str, str]] = {
    a_format_of_the_devices_own: (
        "HostError",
        "layer 1 of series 'linear': its tensor 'weight' is in the device's own format FRACTAL_NZ",
    ),
    too_few_layers: ("PlanError", "prefetch_step 1 needs at least 2"),
    unlike_layers: ("PlanError", "series 'linear': its layers are not alike"),
    no_layer: ("PlanError", "no series has a layer"),
    a_shared_memory_of_its_own: ("TransportError", "rank 0 no longer has the weights that it"),
    no_shared_memory: ("NodeError", "bytes free, and 4,194,304 are needed"),
}
"""What one rank alone cannot do, and the error that both raise."""


def failing_alone(rank: int) -> list[tuple[str, str]]:
    said, directory = [], shared_memory.DIRECTORY
    for make in ALONE:
        sharding = make(rank)
        with pytest.raises(LayerShardError) as error:
            sharding.finish()
        said.append((type(error.value).__name__, str(error.value)))
        if directory != shared_memory.DIRECTORY:
            shutil.rmtree(shared_memory.DIRECTORY)
            shared_memory.DIRECTORY = directory
    return said


def test_what_one_rank_cannot_do_is_raised_on_all_of_them(tmp_path):
    other, failed = run_ranks(2, failing_alone, tmp_path)
    for (kind, part), (told, retold), (raised, said) in zip(
        ALONE.values(), other, failed, strict=True
    ):
        assert told == raised == kind
        assert part in said
        assert retold == (said if said.startswith("rank 1: ") else f"rank 1: {said}")


PAGE = (Path(__file__).parents[2] / "docs" / "manual-api.md").read_text()


def examples(rank: int) -> list[list[float]]:
    """What the `main` of each example returns: an output, and bytes where it counts them."""
    found = []
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        names: dict = {}
        exec(code, names)
        returned = names["main"](rank)
        output, *counted = returned if isinstance(returned, tuple) else (returned,)
        found.append([output.sum().item(), *counted])
    return found


def test_the_pages_examples_run_on_two_ranks_and_hold_what_it_says(tmp_path):
    one, other = run_ranks(2, examples, tmp_path)
    assert one == other
    assert [len(returned) for returned in one] == [2, 1, 1, 1]
    assert all(output != 0 for output, *_ in one)
    (held_mib,) = re.findall(r"hold (\d+) MiB each instead of 24", PAGE)
    assert one[0][1] == int(held_mib) * 2**20
