"""Tokens do not move within the op of the experts: a GPU may run it on a stream of its own."""

from __future__ import annotations

from typing import Any

import pytest

from hosted.engines import load, run_engines
from recital import model_path

SHARED = "shared_experts.down_proj"
MOVING: dict[str, Any] = {"move": "activations"}


def on_a_gpu(config: Any) -> None:
    """From now on the configuration says CUDA; weights stay where they are."""
    import vllm_layershard.hosts.model
    from vllm_layershard.runtime.device import device_of

    cpu = device_of(config.device_config.device)
    vllm_layershard.hosts.model.device_of = lambda device: cpu
    config.device_config.device_type = "cuda"


def loaded_on_a_gpu(rank: int, config: Any) -> bool:
    on_a_gpu(config)
    load(config, lambda model: None)
    return True


@pytest.mark.parametrize("rule", [MOVING, {"move": "auto", "move_weights_from": 8}])
def test_a_linear_of_shared_experts_is_refused_by_name_before_it_is_loaded(rule):
    sharding = {"layers": [SHARED, "o_proj"], **rule}
    for found in run_engines(model_path(), sharding, loaded_on_a_gpu):
        assert found.startswith(
            f"HostError: layer_sharding.move = {rule['move']!r}: model.layers.4.mlp.{SHARED} runs "
            "within vLLM's op of the routed experts"
        )
        assert "leave it out, or use move 'weights'" in found


@pytest.mark.parametrize(
    "sharding",
    [{"layers": [SHARED, "o_proj"]}, {"layers": ["o_proj", "q_b_proj"], **MOVING}],
)
def test_their_weights_may_move_and_tokens_of_other_linears(sharding):
    assert run_engines(model_path(), sharding, loaded_on_a_gpu) == [True, True]


def asked_of_modules(rank: int, config: Any) -> list[str | None]:
    """What is said of a shared expert, as its block builds it and called by the block itself."""
    from vllm_layershard.errors import HostError
    from vllm_layershard.hosts.moves.excluded import check_seen
    from vllm_layershard.hosts.settings import requested

    model = load(config, lambda model: None)
    asked, said = requested(config), []
    mlp = model.get_submodule("model.layers.4.mlp")
    linear = mlp.shared_experts.down_proj

    def ask(named: list[Any], exchanged: list[Any]) -> None:
        try:
            check_seen(model, config, asked, named, exchanged)
            said.append(None)
        except HostError as error:
            said.append(str(error))

    ask([linear], [linear])
    config.device_config.device_type = "npu"
    ask([linear], [])
    ask([], [linear])
    mlp.experts._shared_experts = None
    ask([linear], [linear])
    return said


def test_it_is_asked_where_the_module_runs_not_what_it_is_called():
    """On the CPU, on an NPU, before an exchange of tokens, and outside the op."""
    for said in run_engines(model_path(), {"layers": ["o_proj"], **MOVING}, asked_of_modules):
        cpu, moved, exchanged, outside = said
        assert cpu is outside is None
        assert f"model.layers.4.mlp.{SHARED} runs within vLLM's op" in moved
        assert f"token_exchange: model.layers.4.mlp.{SHARED} runs within vLLM's op" in exchanged
