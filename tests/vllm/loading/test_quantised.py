"""Quantised checkpoints on the real vLLM model and two real ranks, each linear really applied.

vLLM's own methods on their real layouts and with their real CPU kernels, and a method that vLLM
does not know, which a plugin of the tests registers. What is compared with is the same checkpoint
loaded unsharded in the same process.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from hosted.engines import RANKS, load, run_engines
from recital import model_path
from serving.plan import planned_series
from serving.quantised import LINEARS, PLUGINS, kernel_lacking, quantised

LAYERS = range(9)
SHARDING = {"layers": list(LINEARS), "verify": True}

MOVING = {
    "awq": {"qweight": "int32", "scales": "bfloat16"},
    "pack-quantized": {"weight_packed": "int32", "weight_scale": "bfloat16"},
    "fp8": {"weight": "float8_e4m3fn"},
    "reference-groups": {
        "weight_packed": "uint8", "weight_scale": "float32", "offset": "float32",
    },
    "reference-blocks": {"weight_packed": "uint8"},
}  # fmt: skip
"""What of a linear moves; the rest is on every rank."""

STAYING = {
    "awq": {"qzeros"},
    "pack-quantized": {"weight_zero_point", "weight_shape"},
    "fp8": {"weight_scale"},
    "reference-groups": set(),
    "reference-blocks": {"weight_scale", "offset"},
}


PLANNED = ("awq", "fp8")
"""The planner knows these; it refuses zero points of compressed-tensors, and the tests' method."""


def applied(rank: int, config: Any, models: dict[str, str]) -> dict[str, Any]:
    return {name: applied_one(rank, with_model(config, model)) for name, model in models.items()}


def with_model(config: Any, model: str, sharded: bool = True) -> Any:
    """The configuration of another checkpoint for the same ranks."""
    from vllm.engine.arg_utils import EngineArgs

    other = EngineArgs(
        model=model,
        data_parallel_size=RANKS,
        enforce_eager=True,
        additional_config=config.additional_config if sharded else {},
    ).create_engine_config()
    other.parallel_config = config.parallel_config
    return other


def linear_of(model: torch.nn.Module, layer: int, name: str) -> Any:
    return model.get_submodule(f"model.layers.{layer}.self_attn.{name}")


@torch.inference_mode()
def outputs(model: torch.nn.Module, rank: int, sharded: bool) -> list[torch.Tensor]:
    """Of every quantised linear, in forward order: a forward without what lies between."""
    draw = torch.Generator().manual_seed(rank)
    found = []
    for layer in LAYERS:
        if sharded:
            torch.ops.layershard.reach(torch.empty(0), f"model.layers.{layer}")
        for name in LINEARS:
            linear = linear_of(model, layer, name)
            x = torch.randn(5, linear.input_size, generator=draw).bfloat16()
            found.append(linear(x)[0])
    return found


def equal_twice(model: torch.nn.Module, rank: int, expected: list[torch.Tensor]) -> list[bool]:
    """Of two forwards, each after the slots were filled with NaN: which outputs are `expected`."""
    from vllm_layershard.runtime.ops import bound_series

    equal = []
    for _ in range(2):
        for series in bound_series():
            series.slots.poison()
        pairs = zip(outputs(model, rank, sharded=True), expected, strict=True)
        equal += [torch.equal(one, other) for one, other in pairs]
    return equal


def applied_one(rank: int, config: Any) -> dict[str, Any]:
    from vllm_layershard.runtime.ops import bound_series

    plain_config = with_model(config, config.model_config.model, sharded=False)
    model, plain = load(config, lambda _: None), load(plain_config, lambda _: None)
    expected = outputs(plain, rank, sharded=False)
    return {
        "equal": equal_twice(model, rank, expected),
        "outputs": len({tuple(x.flatten()[:8].tolist()) for x in expected}),
        "series": {s.name: seen_of(s, rank, model, plain) for s in bound_series()},
    }


def seen_of(series: Any, rank: int, model: torch.nn.Module, plain: torch.nn.Module) -> dict:
    """What moves, what stays and is equal to the unsharded model's, and where the memory is."""
    from vllm_layershard.runtime.tensors import held

    moving, slots = series.weights(0), [t.data_ptr() for s in series.slots.tensors for t in s]
    staying, in_slots = set(), []
    for layer in LAYERS:
        mine, theirs = (held(linear_of(m, layer, series.name)) for m in (model, plain))
        staying |= {
            name for name in mine if name not in moving and torch.equal(mine[name], theirs[name])
        }
        if layer not in series.plan.owned_layers(rank):
            in_slots += [mine[name].data_ptr() in slots for name in moving]
    return {
        "moving": {name: str(t.dtype).removeprefix("torch.") for name, t in moving.items()},
        "contiguous": {name for name, tensor in moving.items() if tensor.is_contiguous()},
        "staying": staying,
        "in slots": in_slots,
        "owned": list(series.plan.owned_layers(rank)),
        "replicated_bytes": series.plan.ledger.replicated_bytes,
        "resident_bytes": series.resident_bytes(),
        "slot_bytes": series.slots.nbytes(),
        "ledger": (series.plan.ledger.resident_bytes[rank], series.plan.ledger.slot_bytes),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("quantised")
    return {name: quantised(model_path(), directory / name, name) for name in [*MOVING, "int8"]}


@pytest.fixture(scope="module")
def seen(models) -> list[Any]:
    """Of each rank, what there is to see of each method: one pair of processes for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGINS)
        paths = {name: str(models[name]) for name in MOVING if kernel_lacking(name) is None}
        inspect = functools.partial(applied, models=paths)
        found = run_engines(models["fp8"], SHARDING, inspect)
    for one in found:
        assert not isinstance(one, str), one
    return found


@pytest.mark.parametrize("method", MOVING)
def test_every_rank_computes_what_the_unsharded_model_does(method, seen, models):
    if reason := kernel_lacking(method):
        # vLLM itself cannot run the model, sharded or not: its CPU kernel wants AVX-512.
        pytest.skip(reason)
    planned = planned_series(models[method], list(LINEARS), 1) if method in PLANNED else {}
    for rank, of in enumerate(seen):
        assert of[method]["outputs"] == len(LINEARS) * len(LAYERS)
        assert all(of[method]["equal"])
        assert set(of[method]["series"]) == set(LINEARS)
        for name, series in of[method]["series"].items():
            assert series["moving"] == MOVING[method]
            assert series["staying"] == STAYING[method]
            assert series["owned"] == [layer for layer in LAYERS if layer % RANKS == rank]
            assert all(series["in slots"])
            assert (series["resident_bytes"], series["slot_bytes"]) == series["ledger"]
            if planned:
                assert series["replicated_bytes"] == planned[name]["replicated_bytes"]
                assert series["resident_bytes"] == planned[name]["resident_bytes"][rank]
                assert series["slot_bytes"] == planned[name]["slot_bytes"]


ODD = {"first": (0,), "last": (8,), "pair": (0, 8)}
"""The layers whose o_proj is not quantised: no more than the slots of a step of 1 hold."""


@torch.inference_mode()
def odd_one(rank: int, config: Any, model: str) -> dict[str, Any]:
    """The whole layer beside the moved ones, of one checkpoint."""
    from vllm_layershard.runtime.ops import bound_series

    mine = with_model(config, model)
    sharded = load(mine, lambda _: None)
    plain = load(with_model(config, model, sharded=False), lambda _: None)
    expected = outputs(plain, rank, sharded=False)
    return {
        "equal": equal_twice(sharded, rank, expected),
        "meta": [name for name, p in sharded.named_parameters() if p.is_meta],
        "series": {
            series.name: {
                "layer_ids": list(series.plan.series.layer_ids),
                "owner": list(series.plan.owner),
                "dtype": str(series.weights(0)["weight"].dtype),
                "replicated_bytes": series.plan.ledger.replicated_bytes,
                "resident_bytes": series.resident_bytes(),
                "slot_bytes": series.slots.nbytes(),
                "launches": series.counters.launches,
                "placement": series.placement,
            }
            for series in bound_series()
        },
    }


def odd_ones(rank: int, config: Any, models: dict[str, str]) -> dict[str, Any]:
    return {name: odd_one(rank, config, model) for name, model in models.items()}


def test_few_layers_that_are_not_quantised_stay_whole_on_every_rank(tmp_path):
    """Each is loaded and never released for good, and the plan, the planner and the ranks agree."""
    models = {
        name: quantised(
            model_path(),
            tmp_path / name,
            "fp8",
            tuple(f"model.layers.{layer}.self_attn.o_proj" for layer in odd),
        )
        for name, odd in ODD.items()
    }
    inspect = functools.partial(odd_ones, models={name: str(m) for name, m in models.items()})
    found = run_engines(models["first"], SHARDING, inspect)
    for name, few in ODD.items():
        planned = planned_series(models[name], list(LINEARS), 1)
        assert [s for s in planned if s.startswith("o_proj@")] == sorted(
            {f"o_proj@{few[0]}", f"o_proj@{1 if 0 in few else 0}"}
        )
        for rank, of in enumerate(found):
            assert not isinstance(of, str), of
            seen = of[name]
            assert len(seen["equal"]) == 2 * len(LINEARS) * len(LAYERS)
            assert all(seen["equal"])
            assert not [parameter for parameter in seen["meta"] if "o_proj" in parameter]
            assert len(seen["series"]) == 3
            assert set(seen["series"]) == set(planned)
            for series, held in seen["series"].items():
                for key in ("layer_ids", "owner", "replicated_bytes", "slot_bytes"):
                    assert held[key] == planned[series][key], (series, key)
                assert held["resident_bytes"] == planned[series]["resident_bytes"][rank]
            odd = seen["series"][f"o_proj@{few[0]}"]
            assert odd["layer_ids"] == list(few)
            assert (odd["owner"], odd["slot_bytes"], odd["launches"]) == ([-1] * len(few), 0, 0)
            assert odd["resident_bytes"] == odd["replicated_bytes"] > 0
            assert (odd["dtype"], odd["placement"]) == ("torch.bfloat16", "replicated")


@pytest.mark.parametrize("how", [{"transport": "pull"}, {"placement": "striped"}], ids=str)
def test_the_layers_beside_an_odd_one_are_pulled(how, tmp_path):
    """The name of their series tells them from it: o_proj@0, which is also that of a piece."""
    left = "model.layers.8.self_attn.o_proj"
    model = quantised(model_path(), tmp_path / "model", "fp8", (left,))
    inspect = functools.partial(odd_one, model=str(model))
    for of in run_engines(model, SHARDING | how, inspect):
        assert not isinstance(of, str), of
        assert all(of["equal"])
        placed = {name: series["placement"] for name, series in of["series"].items()}
        moved = how.get("placement", "round_robin")
        assert placed == {"q_b_proj": moved, "o_proj@0": moved, "o_proj@8": "replicated"}


def loaded(rank: int, config: Any) -> str:
    load(config, lambda _: None)
    return "loaded"


def test_a_weight_that_a_kernel_takes_away_is_refused_by_name(models):
    """vLLM 0.32's int8 kernel on x86 without AMX: oneDNN keeps the only copy."""
    for said in run_engines(models["int8"], SHARDING, loaded):
        assert said.startswith("HostError: layer_sharding: model.layers.0.self_attn.q_b_proj: its ")
        assert "(CompressedTensorsLinearMethod, CompressedTensorsW8A8Int8)" in said
