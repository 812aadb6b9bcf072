"""The manager with the names of vllm-ascend: real ranks, and a model that calls nothing else."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gloo.ranks import RankError, run_ranks
from vllm_layershard.errors import PlanError
from vllm_layershard.manual import Flashcomm2OShardManager, flashcomm2_oshard_manager

HEADS, WIDTH = 24, 16


class Projection(nn.Linear):
    """An o_proj as the manager knows it: by its prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__(HEADS, WIDTH)
        self.prefix = prefix


class Attention(nn.Module):
    def __init__(self, prefix: str, manager: Flashcomm2OShardManager | None, step: int) -> None:
        super().__init__()
        self.prefix, self.manager = prefix, manager
        self.qkv_proj = nn.Linear(WIDTH, 3 * HEADS)
        self.o_proj = Projection(f"{prefix}.o_proj")
        if manager is not None and manager.flashcomm2_oshard_enable():
            manager.register_layer(self.o_proj, step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.manager is not None and self.manager.flashcomm2_oshard_enable():
            self.manager.trigger_broadcast_for_layer(f"{self.prefix}.qkv_proj")
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        return x + self.o_proj(torch.softmax(q @ k.mT, dim=-1) @ v)


class Model(nn.Module):
    """Layers from `start` on; their weights are those of the layer index, sharded or not."""

    def __init__(
        self, manager: Flashcomm2OShardManager | None, layer_ids: range, step: int = 1
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        whole = []
        for layer_id in layer_ids:
            torch.manual_seed(layer_id)
            whole.append(Attention(f"model.layers.{layer_id}.self_attn", None, step))
            self.layers.append(
                Attention(f"model.layers.{layer_id}.self_attn", manager, step)
                if manager is not None
                else whole[-1]
            )
        if manager is not None:
            self._load(whole)
            for _ in self.layers:  # as the original: from every attention layer
                manager.post_process_after_loading()

    def _load(self, whole: list[Attention]) -> None:
        """As a checkpoint is: into each parameter that has memory."""
        for layer, source in zip(self.layers, whole, strict=True):
            for mine, its in zip(layer.parameters(), source.parameters(), strict=True):
                if mine.numel():
                    mine.data.copy_(its)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


def poison(manager: Flashcomm2OShardManager) -> None:
    assert manager._sharding is not None
    manager._sharding.series["o_proj"].slots.poison()


@torch.inference_mode()
def forwards(rank: int, step: int) -> list[bool]:
    """Of ranks that have other tokens each."""
    manager = Flashcomm2OShardManager()
    model, whole = Model(manager, range(7), step), Model(None, range(7))
    equal = []
    for turn in range(4):
        x = inputs(10 * turn + rank)
        poison(manager)
        equal.append(torch.equal(model(x), whole(x)))
    found = [manager.get_layer(index) for index in range(8)]
    return [*equal, found == [*(layer.o_proj for layer in model.layers), None]]


@pytest.mark.parametrize(("ranks", "step"), [(2, 0), (2, 1), (3, 2), (4, 1)])
def test_outputs_equal_the_unsharded_models(ranks, step, tmp_path):
    assert run_ranks(ranks, forwards, tmp_path, step) == [[True] * 5] * ranks


@torch.inference_mode()
def stages(rank: int) -> list[bool]:
    """Two stages of two ranks; the second one starts at layer 5, with 2 or 3 slots."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    layer_ids = (range(5), range(5, 9))[rank // 2]
    equal = []
    for step in (1, 2):
        manager = Flashcomm2OShardManager(groups[rank // 2])
        model, whole = Model(manager, layer_ids, step), Model(None, layer_ids)
        for turn in range(3):
            poison(manager)
            equal.append(torch.equal(model(inputs(turn)), whole(inputs(turn))))
        with pytest.raises(PlanError, match="is in no registered layer"):
            manager.trigger_broadcast_for_layer(f"model.layers.{(rank // 2) * -5 + 5}.mlp")
    return equal


def test_a_stage_may_start_at_any_layer(tmp_path):
    """Elsewhere its ring was indexed by the absolute layer, and an assertion failed."""
    assert run_ranks(4, stages, tmp_path) == [[True] * 6] * 4


@torch.inference_mode()
def drafts(rank: int) -> list[Any]:
    manager = Flashcomm2OShardManager(num_hidden_layers=4)
    model = Model(manager, range(6))
    draft = model.layers[5]
    whole = Model(None, range(6))
    return [
        torch.equal(model(inputs(rank)), whole(inputs(rank))),
        [manager.get_layer(index) is None for index in range(6)],
        torch.equal(draft.o_proj.weight, whole.layers[5].o_proj.weight),
        torch.equal(draft(inputs(rank)), whole.layers[5](inputs(rank))),
    ]


def test_draft_layers_stay_whole_and_trigger_nothing(tmp_path):
    expected = [True, [False] * 4 + [True] * 2, True, True]
    assert run_ranks(2, drafts, tmp_path) == [expected] * 2


def as_the_original_is_called(rank: int) -> list[bool]:
    """The manager of the process, over the world; the last layer is a draft's."""
    flashcomm2_oshard_manager.num_hidden_layers = 4
    with torch.inference_mode():
        model = Model(flashcomm2_oshard_manager, range(5))
        equal = torch.equal(model(inputs(0)), Model(None, range(5))(inputs(0)))
    return [equal, *(flashcomm2_oshard_manager.get_layer(i) is None for i in (3, 4))]


def test_one_manager_is_there_from_the_start(tmp_path):
    assert run_ranks(2, as_the_original_is_called, tmp_path) == [[True, False, True]] * 2


def enabled(rank: int) -> list[bool]:
    group = dist.new_group([0, 1])
    alone = dist.new_group([2])
    managers = [Flashcomm2OShardManager(given) for given in (None, group, alone)]
    return [manager.flashcomm2_oshard_enable() for manager in managers]


def test_it_is_enabled_where_there_is_another_rank(tmp_path):
    assert not Flashcomm2OShardManager().flashcomm2_oshard_enable()
    inside, outside = [True, True, False], [True, False, False]
    assert run_ranks(3, enabled, tmp_path) == [inside, inside, outside]


def told(action: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(PlanError) as error:
        action(*args)
    return str(error.value)


@torch.inference_mode()
def misused(rank: int) -> dict[str, str]:
    manager, x = Flashcomm2OShardManager(), torch.ones(1, HEADS)
    said = {"nothing registered": told(manager.trigger_broadcast_for_layer, "model.layers.0.mlp")}
    manager.post_process_after_loading()  # without a layer it does nothing
    layers = [Projection(f"model.layers.{index}.self_attn.o_proj") for index in range(4)]
    for layer in layers:
        manager.register_layer(layer)
    said |= {
        "twice": told(manager.register_layer, layers[0]),
        "same index": told(manager.register_layer, Projection("model.layers.0.self_attn.o_proj")),
        "other step": told(manager.register_layer, Projection("model.layers.4.o_proj"), 2),
        "no prefix": told(manager.register_layer, nn.Linear(HEADS, WIDTH)),
        "no index": told(manager.register_layer, Projection("model.norm")),
        "two indices": told(manager.register_layer, Projection("model.layers.5.self_attn.1.o")),
        "no layer": told(manager.register_layer, None),
        "forward too early": told(layers[1], x),
        "trigger too early": told(manager.trigger_broadcast_for_layer, "model.layers.1.mlp"),
    }
    manager.post_process_after_loading()
    manager.post_process_after_loading()
    said |= {
        "register too late": told(manager.register_layer, Projection("model.layers.4.o_proj")),
        "unknown layer": told(manager.trigger_broadcast_for_layer, "model.layers.61.self_attn"),
        "another model's": told(manager.trigger_broadcast_for_layer, "draft.layers.0.self_attn"),
        "trigger without index": told(manager.trigger_broadcast_for_layer, "model.norm"),
        "never triggered": told(layers[0], x),
        "never triggered, called by name": told(layers[0].forward, x),
    }
    copied = copy.deepcopy(layers[0])
    manager.trigger_broadcast_for_layer("model.layers.0.self_attn")
    return said | {"a copy": told(copied, x)}


KNOWN = ", ".join(f"model.layers.{index}.self_attn.o_proj" for index in range(4))
SAID = {
    "nothing registered": "layers.0.mlp is in no registered layer; those registered are: none",
    "twice": "series 'o_proj': layer 0 is registered already",
    "same index": "series 'o_proj': layer 0 is registered already",
    "other step": "model.layers.4.o_proj comes with prefetch_step 2, and the layers before it with",
    "no prefix": "prefix null has no layer index; a layer's prefix is like model.layers.3.self",
    "no index": "prefix 'model.norm' has no layer index",
    "two indices": "prefix 'model.layers.5.self_attn.1.o' has 2 layer indices",
    "no layer": "register_layer: NoneType is no layer; pass the nn.Module",
    "forward too early": "model.layers.1.self_attn.o_proj is run before post_process_after_loading",
    "trigger too early": "model.layers.1.mlp is triggered before post_process_after_loading",
    "register too late": "model.layers.4.o_proj is registered after post_process_after_loading",
    "unknown layer": f"model.layers.61.self_attn is in no registered layer; those registered are: "
    f"{KNOWN}",
    "another model's": f"draft.layers.0.self_attn is in no registered layer; those registered are: "
    f"{KNOWN}",
    "trigger without index": "prefix 'model.norm' has no layer index",
    "never triggered": "layer 0 of series 'o_proj' is waited for and was not started; start "
    "(reach, trigger) every layer",
    "never triggered, called by name": "layer 0 of series 'o_proj' is waited for and was not start",
    "a copy": "belongs to no loaded series",
}


def test_misuse_is_named(tmp_path):
    for said in run_ranks(2, misused, tmp_path):
        assert said.keys() == SAID.keys()
        for name, part in SAID.items():
            assert part in said[name], name


ORDERS: dict[str, tuple[list[str], str | None]] = {
    "each twice": (["t0 t0 r0", "t1 t1 r1", "t2 t2 r2", "t3 t3 r3", "t4 t4 r4"], None),
    "again once it ran": (["t0 r0 t0 r0", "t1 r1", "t2 r2 t2 r2", "t3 r3", "t4 r4"], None),
    "one ahead": (["t0 r0", "t1 r1", "t2 r2", "t3 t4 r3 r4"], None),
    "the last one never": (["t0 r0", "t1 r1", "t2 r2", "t3 r3", "r4"], None),
    "one never": (["t0 r0", "t1 r1", "r2", "r3"], "layer 3"),
    "none": (["r0"], "layer 0"),
    "all at first": (["t0 t1 t2 t3 t4", "r0"], "layer 0"),
    "backwards": (["t4 r4"], None),
    "two in exchanged order": (["t0 r0", "t2", "r2"], "layer 2"),
    "two forwards into each other": (["t0 r0 t1 r1 t2", "t0", "r2"], "layer 2"),
}
"""By name: a forward, as triggers and runs of layers, and the layer that the error names."""


@torch.inference_mode()
def in_an_order(acts: list[str]) -> list[Any]:
    """After a right forward, so that slots hold a layer; each run is compared with the whole."""
    manager = Flashcomm2OShardManager()
    model, whole = Model(manager, range(5)), Model(None, range(5))
    poison(manager)
    x = torch.ones(2, HEADS)
    equal = [torch.equal(model(inputs(0)), whole(inputs(0)))]
    for act in " ".join(acts).split():
        index = int(act[1])
        if act[0] == "t":
            manager.trigger_broadcast_for_layer(f"model.layers.{index}.self_attn")
            continue
        try:
            output = model.layers[index].o_proj(x)
        except PlanError as error:
            return [*equal, re.findall(r"layer \d+", str(error))[0]]
        equal.append(torch.equal(output, whole.layers[index].o_proj(x)))
    return [*equal, None]


def in_every_order(rank: int) -> dict[str, list[Any]]:
    return {name: in_an_order(acts) for name, (acts, _) in ORDERS.items()}


def test_an_order_that_is_not_the_plans_is_right_or_named(tmp_path):
    for found in run_ranks(2, in_every_order, tmp_path):
        assert found.keys() == ORDERS.keys()
        for name, (*equal, error) in found.items():
            acts, named = ORDERS[name]
            assert all(equal), name
            assert error == named, name
            if named is None:
                assert len(equal) == 1 + " ".join(acts).count("r"), name


@torch.inference_mode()
def gone(rank: int) -> list[bool]:
    manager = Flashcomm2OShardManager()
    model = Model(manager, range(3))
    model(inputs(0))
    layer = weakref.ref(model.layers[0].o_proj)
    del model
    gc.collect()
    return [layer() is None, manager.get_layer(0) is None]


def test_a_model_that_goes_takes_its_layers_along(tmp_path):
    assert run_ranks(2, gone, tmp_path) == [[True, True]] * 2


def a_rank_with_other_layers(rank: int) -> None:
    Model(Flashcomm2OShardManager(), range(3 + rank))


def test_ranks_with_other_layers_get_the_same_error(tmp_path):
    with pytest.raises(RankError, match=r"rank 1 against rank 0: plan\.series\[0\]") as error:
        run_ranks(2, a_rank_with_other_layers, tmp_path)
    assert error.value.kind == "MismatchError"


PAGE = (Path(__file__).parents[3] / "docs" / "oshard-manager.md").read_text()


def example(rank: int) -> list[Any]:
    """The example's output, and the bytes that this rank holds of the o_proj."""
    names: dict = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, names)
    output, model = names["main"](rank)
    sharding = names["manager"]._sharding
    if sharding is None:
        return [output.tolist(), sum(layer.o_proj.weight.nbytes for layer in model)]
    series = sharding.series["o_proj"]
    return [output.tolist(), series.resident_bytes() + series.slots.nbytes()]


def test_the_pages_example_runs_on_two_ranks_and_alone(tmp_path):
    whole, all_bytes = example(0)
    (held_mib,) = re.findall(r"hold (\d+) MiB of it each instead of 24", PAGE)
    assert all_bytes == 24 * 2**20
    assert run_ranks(2, example, tmp_path) == [[whole, int(held_mib) * 2**20]] * 2


def test_the_page_names_what_the_original_had():
    names = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert len(names) == 5
    assert all(callable(getattr(flashcomm2_oshard_manager, name)) for name in names)
