"""Forwards that move weights or tokens on the real vLLM model and two real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gloo.moving import is_poisoned
from hosted.engines import load, run_engines
from hosted.tiny import CONFIG
from recital import model_path

LAYERS = range(CONFIG["num_hidden_layers"])
COLUMNS = {"o_proj": 128, "q_b_proj": 64}
START = 8
LOADS = [(1, 1), (5, 2), (1, 30), (8, 8), (0, 3), (7, 7)]
"""Tokens of both ranks in one forward after another."""


def linear_of(model: torch.nn.Module, layer: int, name: str) -> Any:
    return model.get_submodule(f"model.layers.{layer}.self_attn.{name}")


def tokens_of(rank: int, forward: int, count: int, columns: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 * forward + rank)
    return torch.randn(count, columns, generator=draw).bfloat16()


def forwards(rank: int, config: Any, model: torch.nn.Module) -> list[bool]:
    """Whether every linear's rows equal those of its product in one process, kind by kind."""
    from vllm.forward_context import set_forward_context

    from vllm_layershard.runtime.ops import bound_series

    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    kept = bound_series()[0].plan.series.kept_layer
    equal = []
    for number, counts in enumerate(LOADS):
        weights, mine = max(counts) >= START, counts[rank]
        agreed = torch.tensor(counts, dtype=torch.int32)
        with (
            torch.inference_mode(),
            set_forward_context(None, config, num_tokens=mine, num_tokens_across_dp=agreed),
        ):
            for layer in LAYERS:
                hidden = torch.zeros(mine, CONFIG["hidden_size"])
                if kept is None or layer != kept + 1:  # its movement starts a layer ahead
                    torch.ops.layershard.reach(hidden, f"model.layers.{layer}")
                if layer == 0 and not weights:
                    for series in bound_series():
                        series.slots.poison()
                for name, columns in () if layer == kept else COLUMNS.items():
                    weight = checkpoint[f"model.layers.{layer}.self_attn.{name}.weight"]
                    everyone = [tokens_of(r, number, n, columns) for r, n in enumerate(counts)]
                    x = everyone[rank] if weights else torch.cat(everyone)
                    expected = torch.nn.functional.linear(x, weight)
                    if not weights:
                        expected = together(name, x, weight).split(list(counts))[rank]
                    made = linear_of(model, layer, name)(everyone[rank])[0]
                    equal.append(torch.equal(made, expected))
        if not weights:
            equal += [is_poisoned(series) for series in bound_series()]
    return equal


def together(name: str, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product where tokens move: of each rank's rows, side by side, if the ranks have some."""
    from vllm_layershard.runtime.ops import bound_series

    (plan,) = (series.plan for series in bound_series() if series.name == name)
    if plan.series.rows is None:
        return torch.nn.functional.linear(x, weight)
    bounds = map(plan.rows, range(len(plan.stripes)))
    made = [torch.nn.functional.linear(x, weight[first:end]) for first, end in bounds]
    return torch.cat(made, dim=1)


def life(rank: int, config: Any) -> dict[str, Any]:
    from vllm_layershard.runtime.ops import bound_series

    model = load(config, lambda _: None)
    said = None
    with torch.inference_mode():
        try:
            torch.ops.layershard.reach(torch.zeros(1, CONFIG["hidden_size"]), "model.layers.0")
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    return {
        "without a forward": said,
        "equal": forwards(rank, config, model),
        "forwards": [(s.counters.forwards, s.counters.activation_forwards) for s in bound_series()],
        "asks for plain tensors": linear_of(model, 1, "o_proj").requires_unquantized_input,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transport": "pull"},
        {"keep_first": True},
        {"placement": "striped"},
        {"placement": "striped", "keep_first": True},
    ],
)
def test_either_kind_of_forward_makes_what_the_checkpoints_weights_make(options):
    sharding = {"layers": [*COLUMNS], "move": "auto", "move_weights_from": START, **options}
    still = sum(max(load_) < START for load_ in LOADS)
    for seen in run_engines(model_path(), sharding, life):
        assert not isinstance(seen, str), seen
        linears = len(COLUMNS) * (len(LAYERS) - ("keep_first" in options))
        assert seen["equal"] == [True] * (len(LOADS) * linears + 2 * still)
        assert seen["forwards"] == [(len(LOADS), still)] * 2
        assert seen["asks for plain tensors"] is True
        assert seen["without a forward"].startswith(
            "HostError: layer_sharding.move: series o_proj runs in a forward for which the "
            "data-parallel ranks have agreed on no token counts"
        )


def differing(rank: int, config: Any) -> str:
    """One of the ranks has another threshold."""
    if rank == 1:
        config.additional_config["layer_sharding"]["move_weights_from"] = START + 1
    load(config, lambda _: None)
    return "loaded"


def test_ranks_with_another_threshold_are_named():
    sharding = {"layers": ["o_proj"], "move": "auto", "move_weights_from": START}
    for seen in run_engines(model_path(), sharding, differing):
        assert seen.startswith("MismatchError: the ranks of layer sharding were not started alike")
        assert "move_weights_from" in seen
