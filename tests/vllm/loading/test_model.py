"""From construction to the first forward, on the real vLLM model and two real ranks."""

from __future__ import annotations

import functools
import re

import torch
from safetensors.torch import load_file

from hosted.engines import load, run_engines
from recital import model_path
from serving.weights import with_other_weights

LAYERS = range(9)


def linear_of(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    return model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")


def life_of_o_proj(rank: int, config) -> dict:
    constructed: dict[str, list] = {}

    def between(model: torch.nn.Module) -> None:
        weights = [linear_of(model, layer).weight for layer in LAYERS]
        constructed["meta"] = [layer for layer in LAYERS if weights[layer].is_meta]
        constructed["loaders"] = [hasattr(weight, "weight_loader") for weight in weights]

    model = load(config, between)
    from vllm_layershard.runtime.ops import bound_series

    (series,) = bound_series()
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    owned = list(series.plan.owned_layers(rank))
    return {
        **constructed,
        "owned": owned,
        "right": [
            torch.equal(
                linear_of(model, layer).weight,
                checkpoint[f"model.layers.{layer}.self_attn.o_proj.weight"],
            )
            for layer in owned
        ],
        "in_their_slots": [
            linear_of(model, layer).weight.data_ptr()
            == series.slots.tensors[series.plan.schedule.slot[layer]][0].data_ptr()
            for layer in LAYERS
            if layer not in owned
        ],
        "num_slots": len(series.slots.tensors),
        "method": type(linear_of(model, 0).quant_method).__name__,
        "unsharded": type(
            model.get_submodule("model.layers.0.self_attn.q_b_proj").quant_method
        ).__name__,
    }


def test_others_hold_and_load_nothing_and_read_two_slots():
    found = run_engines(model_path(), {"layers": ["o_proj"], "verify": True}, life_of_o_proj)
    for rank, seen in enumerate(found):
        assert not isinstance(seen, str), seen
        owned = [layer for layer in LAYERS if layer % 2 == rank]
        assert seen["owned"] == owned
        assert seen["meta"] == [layer for layer in LAYERS if layer not in owned]
        assert all(seen["loaders"])
        assert all(seen["right"])
        assert all(seen["in_their_slots"])
        assert seen["num_slots"] == 2
        assert seen["method"] == "ShardedLinearMethod"
        assert seen["unsharded"] == "UnquantizedLinearMethod"


def owned_with_stride(rank: int, config) -> dict:
    load(config, lambda model: None)
    from vllm_layershard.runtime.ops import bound_series

    (series,) = bound_series()
    return {"layers": series.plan.series.layer_ids, "owned": series.plan.owned_layers(rank)}


def test_a_stride_shards_every_second_layer_and_balances_owners():
    sharding = {"layers": ["o_proj"], "layer_stride": 2}
    assert run_engines(model_path(), sharding, owned_with_stride) == [
        {"layers": (0, 2, 4, 6, 8), "owned": (0, 4, 8)},
        {"layers": (0, 2, 4, 6, 8), "owned": (2, 6)},
    ]


def kept_and_moved(rank: int, config) -> dict:
    model = load(config, lambda model: None)
    from vllm_layershard.runtime.ops import _boundaries, bound_series

    (series,) = bound_series()
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    kept = linear_of(model, 0)
    outputs, expected = [], []
    x = torch.randn(5, kept.input_size, generator=torch.Generator().manual_seed(rank)).bfloat16()
    for layer in LAYERS:
        if f"model.layers.{layer}" in _boundaries:
            torch.ops.layershard.reach(x, f"model.layers.{layer}")
        with torch.inference_mode():
            outputs.append(linear_of(model, layer)(x)[0])
            weight = checkpoint[f"model.layers.{layer}.self_attn.o_proj.weight"]
            expected.append(torch.nn.functional.linear(x, weight))
    return {
        "right": [torch.equal(*pair) for pair in zip(outputs, expected, strict=True)],
        "layers": series.plan.series.layer_ids,
        "owned": series.plan.owned_layers(rank),
        "kept": (
            kept.weight.numel() == 0  # a CPU with AVX-512 packs it away once it is loaded
            or torch.equal(kept.weight, checkpoint["model.layers.0.self_attn.o_proj.weight"])
        ),
        "kept method": type(kept.quant_method).__name__,
        "boundaries": {
            name: [place.position for place in places]
            for name, places in sorted(_boundaries.items())
        },
        "hooked": [
            layer
            for layer in LAYERS
            if model.get_submodule(f"model.layers.{layer}")._forward_pre_hooks
        ],
    }


def test_a_kept_first_layer_is_loaded_by_every_rank_and_starts_the_second():
    sharding = {"layers": ["o_proj"], "keep_first": True, "verify": True}
    found = run_engines(model_path(), sharding, kept_and_moved)
    for rank, seen in enumerate(found):
        assert not isinstance(seen, str), seen
        assert seen["layers"] == tuple(range(1, 9))
        assert seen["owned"] == tuple(layer for layer in range(1, 9) if layer % 2 == rank)
        assert seen["kept"]
        assert seen["right"] == [True] * 9
        assert seen["kept method"] == "UnquantizedLinearMethod"
        assert seen["boundaries"] == {"model.layers.0": [0]} | {
            f"model.layers.{layer}": [layer - 1] for layer in range(2, 9)
        }
        assert seen["hooked"] == [0, 2, 3, 4, 5, 6, 7, 8]


REFUSED = [
    (
        {"layers": ["shared_experts.down_proj"], "layer_stride": 9},
        r"PlanError: layer_stride 9 leaves no layer of ",
    ),
    (
        {"layers": ["o_proj", "out_proj"]},
        r"PlanError: 'out_proj' matches no linear of this model; those that may be sharded are: "
        r".*self_attn\.o_proj \(9 x 32,768 bytes\).*mlp\.gate_up_proj \(4 x 131,072 bytes\)",
    ),
    (
        {"layers": ["mlp.gate_up_proj"], "prefetch_step": 4},
        r"PlanError: series 'mlp.gate_up_proj' has 4 layers; prefetch_step 4 needs at least 5",
    ),
]


def refusals(rank: int, config) -> list[str]:
    """What each start comes to on this rank."""
    from vllm_layershard.errors import LayerShardError

    said = []
    for sharding, _ in REFUSED:
        config.compilation_config.static_forward_context.clear()
        config.additional_config = {"layer_sharding": sharding}
        try:
            load(config, lambda model: None)
            said.append("loaded")
        except LayerShardError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_what_only_the_model_can_tell_is_refused_on_every_rank():
    for seen in run_engines(model_path(), REFUSED[0][0], refusals):
        assert not isinstance(seen, str), seen
        for (_, expected), said in zip(REFUSED, seen, strict=True):
            assert re.match(expected, said), said


def reloaded(rank: int, config, other: str) -> dict:
    model = load(config, lambda model: None)
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    from vllm_layershard.runtime.ops import bound_series

    (series,) = bound_series()
    addresses = [linear_of(model, layer).weight.data_ptr() for layer in LAYERS]
    with torch.inference_mode(), torch.device("cpu"):
        reload_weights(config, model, None, other, is_checkpoint_format=True)
    checkpoint = load_file(f"{other}/model.safetensors")
    return {
        "same addresses": addresses == [linear_of(model, i).weight.data_ptr() for i in LAYERS],
        "new": [
            torch.equal(
                series.resident[layer]["weight"],
                checkpoint[f"model.layers.{layer}.self_attn.o_proj.weight"],
            )
            for layer in series.plan.owned_layers(rank)
        ],
        "read from where they are served": all(
            linear_of(model, layer).weight.data_ptr() == series.weights(layer)["weight"].data_ptr()
            for layer in LAYERS
        ),
    }


def test_a_reload_renews_what_is_owned_where_it_is(tmp_path):
    other = with_other_weights(model_path(), tmp_path / "other", ("o_proj",))
    sharding = {"layers": ["o_proj"], "verify": True}
    found = run_engines(model_path(), sharding, functools.partial(reloaded, other=str(other)))
    for seen in found:
        assert not isinstance(seen, str), seen
        assert seen["same addresses"]
        assert seen["new"]
        assert all(seen["new"])
        assert seen["read from where they are served"]
