"""Tensor parallelism alone, where the activation at a boundary is no [tokens, hidden].

Gemma 3n has four activations of each token between its layers: [4, tokens, hidden].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hosted.engines import join, run_engines
from hosted.tiny import GEMMA_3N, write_config

FEW, MANY = 12, 24
START = 20
"""Four times `FEW` is more, and no activation's first dimension is as much."""


def life(rank: int, config: Any) -> dict[str, Any]:
    """What each linear makes of the first tokens, few of them and then many; without attention."""
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import BatchDescriptor, set_forward_context
    from vllm.model_executor.model_loader import get_model

    from vllm_layershard.runtime.ops import bound_series

    config.load_config.load_format = "dummy"
    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU worker does
    with set_current_vllm_config(config):
        join()
        model = get_model(vllm_config=config)
    (series,) = bound_series()
    results: list[Any] = []
    for layer in model.model.layers:  # without a cache attention leaves its room as it is
        layer.self_attn.register_forward_hook(lambda module, given, made: torch.zeros_like(made))
        layer.per_layer_input_gate.register_forward_hook(
            lambda module, given, made: results.append(made[0][:FEW].float().tolist())
        )

    def forward(count: int, **told: Any) -> Any:
        results.clear()
        with (
            torch.inference_mode(),
            set_current_vllm_config(config),
            set_forward_context(None, config, num_tokens=count, **told),
        ):
            try:
                model(torch.arange(count), torch.arange(count))
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        moved = series.counters
        return [*results], moved.forwards, moved.activation_forwards

    return {
        "few": forward(FEW, batch_descriptor=BatchDescriptor(FEW)),
        "many": forward(MANY, batch_descriptor=BatchDescriptor(MANY)),
        "captured": forward(FEW, is_padding=torch.ones(FEW, dtype=torch.bool)),
        "nothing": forward(FEW),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("streams") / "model", GEMMA_3N)


def test_a_forward_has_the_tokens_that_vllm_gives_it(model: Path) -> None:
    asked = {"layers": ["per_layer_input_gate"], "move": "auto", "move_weights_from": START}
    for seen in run_engines(model, asked, life, tp=2):
        assert not isinstance(seen, str), seen
        (few, *first), (many, *second), (captured, *third) = (
            seen[which] for which in ("few", "many", "captured")
        )
        assert (first, second, third) == ([1, 1], [2, 1], [3, 2]), "forwards, and of activations"
        assert few == captured
        for by_tokens, by_weights in zip(few, many, strict=True):
            largest = torch.tensor(by_weights).abs().max()
            assert largest > 0
            near = torch.tensor(by_tokens) - torch.tensor(by_weights)
            assert near.abs().max() < largest / 64
        assert seen["nothing"].startswith(
            "HostError: layer_sharding.move: series per_layer_input_gate runs in a forward of "
            "which nothing tells the number of tokens"
        )
