"""Decode-context parallelism: the real model on four ranks, two and two with the same queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hosted.engines import load, run_engines
from recital import model_path

LAYERS = range(9)
Q_B_PROJ = "model.layers.{}.self_attn.q_b_proj"


@torch.inference_mode()
def queries(rank: int, config: Any) -> dict[str, Any]:
    """What each q_b_proj reads as it is called, and who shares it."""
    model = load(config, lambda _: None)
    from vllm_layershard.runtime.ops import bound_series

    (series,) = bound_series()
    series.slots.poison()
    stored = load_file(Path(config.model_config.model) / "model.safetensors")
    right = []
    for _ in range(2):
        for position, layer in enumerate(LAYERS):
            series.reach(position)
            linear = model.get_submodule(Q_B_PROJ.format(layer))
            part = stored[f"{Q_B_PROJ.format(layer)}.weight"].chunk(2)[rank // 2]
            x = torch.ones(3, part.shape[1], dtype=part.dtype)
            right.append(torch.equal(linear(x)[0], torch.nn.functional.linear(x, part)))
            right.append(torch.equal(linear.weight, part))
    return {
        "ranks": list(series.group.ranks),
        "owned": [*series.plan.owned_layers(rank % 2)],
        "right": right,
    }


def test_neighbours_share_the_queries_of_their_group():
    found = run_engines(model_path(), ["q_b_proj"], queries, tp=4, dcp=2)
    assert len(found) == 4
    for rank, seen in enumerate(found):
        assert isinstance(seen, dict), seen
        assert seen["ranks"] == [[0, 1], [2, 3]][rank // 2]
        assert seen["owned"] == [layer for layer in LAYERS if layer % 2 == rank % 2]
        assert seen["right"] == [True] * 2 * 2 * len(LAYERS)
