"""Pulls among ranks in lockstep: a model with experts, loaded by the real vLLM on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import _world

from hosted.engines import load, run_engines
from hosted.wide import LAYERS, wide_model

NAMES = ["o_proj", "q_b_proj"]
FORWARDS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide"))


def noting_bounds() -> list[bool]:
    """Of the groups that the host makes from now on: whether they leave others room on a device."""
    from vllm_layershard.hosts import groups

    create, asked = groups.create_groups, []

    def noted(*given: Any, **options: Any) -> Any:
        asked.append(options["beside_others"])
        return create(*given, **options)

    groups.create_groups = noted
    return asked


def pulled(rank: int, config: Any) -> dict[str, Any]:
    bounded = noting_bounds()
    _kept = load(config, lambda model: None)
    from vllm_layershard.runtime.ops import bound_series

    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    series = bound_series()
    wrong = []
    for _ in range(FORWARDS + rank):  # a pull does not wait for the other rank's
        for each in series:
            each.slots.poison()
        for layer in LAYERS:
            for each in series:
                each.reach(layer)
            for each in series:
                each.wait(layer)
                stored = checkpoint[f"model.layers.{layer}.self_attn.{each.name}.weight"]
                if not torch.equal(each.weights(layer)["weight"], stored):
                    wrong.append((each.name, layer))
    return {
        "wrong": wrong,
        "lockstep": {each.group.lockstep for each in series},
        "transport": {each.transport_name for each in series},
        "bounded": bounded,
        "data groups": sum(each.group.data in _world.pg_map for each in series),
        "held": [each.resident_bytes() for each in series],
        "planned": [each.plan.ledger.resident_bytes[rank] for each in series],
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"transport": "pull"}, marks=pytest.mark.matrix(part="exchange")),
        {"placement": "striped"},
    ],
)
def test_every_rank_reads_what_was_loaded(model, options):
    for seen in run_engines(model, {"layers": NAMES, "verify": True, **options}, pulled):
        assert not isinstance(seen, str), seen
        assert seen["wrong"] == []
        assert seen["lockstep"] == {True}
        assert seen["transport"] == {"pull"}
        assert seen["bounded"] == [True], "weights move beside the model's own collectives"
        assert seen["data groups"] == 0, "each would keep its buffers on a device"
        assert seen["held"] == seen["planned"]
