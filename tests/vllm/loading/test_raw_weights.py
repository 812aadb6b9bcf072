"""Replicas of a checkpoint in fp8 blocks, whose scales vLLM derives anew from the weight.

vLLM's own `requant_weight_ue8m0_inplace` runs: see plugins/requantised_fp8. What is compared with
is the same checkpoint, loaded unsharded in the same process.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from hosted.engines import load, run_engines
from recital import model_path
from serving.quantised import PLUGINS, quantised
from serving.weights import with_other_weights

LAYERS = range(7)
NAMES = {
    "qkv_proj": "self_attn.qkv_proj",
    "o_proj": "self_attn.o_proj",
    "gate_up_proj": "mlp.gate_up_proj",
    "down_proj": "mlp.down_proj",
}
LAYER_NUMEL = 128 * (256 + 128 + 3 * 384)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("models")
    dense = model_path("dense")
    other = with_other_weights(dense, place / "unquantised", ("q_proj", "o_proj", "down_proj"))
    return (
        quantised(dense, place / "model", "fp8-blocks"),
        quantised(other, place / "other", "fp8-blocks"),
    )


def linears(model: torch.nn.Module) -> Iterator[tuple[int, str, Any]]:
    for layer in LAYERS:
        for name, path in NAMES.items():
            yield layer, name, model.get_submodule(f"model.layers.{layer}.{path}")


@torch.inference_mode()
def outputs(model: torch.nn.Module, sharded: bool) -> list[torch.Tensor]:
    """Of every linear, in forward order: a forward without what lies between."""
    from vllm_layershard.runtime.ops import bound_series

    draw, found = torch.Generator().manual_seed(0), []
    for series in bound_series() if sharded else ():
        series.slots.poison()
    for layer, name, linear in linears(model):
        if sharded and name == "qkv_proj":
            torch.ops.layershard.reach(torch.empty(0), f"model.layers.{layer}")
        found.append(linear(torch.randn(5, linear.input_size, generator=draw).bfloat16())[0])
    return found


def scales(model: torch.nn.Module) -> list[torch.Tensor]:
    return [linear.weight_scale_inv.clone() for *_, linear in linears(model)]


def equal(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(ones, others, strict=True)]


class RawBytes:
    """What lives of raw weights, at each processing of a linear, beside what the rank stores."""

    def __init__(self) -> None:
        self._seen: list[dict[int, int]] = []
        self._own: set[int] = set()

    def watch(self, model: torch.nn.Module) -> None:
        """Called before the checkpoint is loaded: what is not on meta is the rank's own."""
        from requantised_fp8.kernel import RequantisedFp8Kernel

        gc.freeze()  # what is there already need not be looked at again
        self._own = {linear.weight.data_ptr() for *_, linear in linears(model)}
        process = RequantisedFp8Kernel.process_weights_after_loading

        def looking(kernel: Any, layer: torch.nn.Module) -> None:
            self._seen.append(self._alive())
            process(kernel, layer)

        RequantisedFp8Kernel.process_weights_after_loading = looking  # type: ignore[method-assign]
        self._restore = (RequantisedFp8Kernel, process)

    def _alive(self) -> dict[int, int]:
        found: dict[int, int] = {}
        things = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        for tensor in things:
            real = not issubclass(type(tensor), FakeTensor)
            if real and tensor.dtype == torch.float8_e4m3fn and not tensor.is_meta:
                at = tensor.data_ptr()
                found[at] = max(found.get(at, 0), tensor.numel())
        return found

    def most(self, model: torch.nn.Module) -> int:
        from vllm_layershard.runtime.ops import bound_series

        kernel, process = self._restore
        kernel.process_weights_after_loading = process
        stored = self._own | {
            tensor.data_ptr()
            for series in bound_series()
            for layer in LAYERS
            for tensor in series.weights(layer).values()
        }
        return max(
            sum(numel for at, numel in seen.items() if at not in stored) for seen in self._seen
        )


def life(rank: int, config: Any, other: str) -> dict[str, Any]:
    from requantised_fp8 import register
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    register()
    raw = RawBytes()
    model = load(config, raw.watch)
    most = raw.most(model)
    plain = loaded_plain(config, config.model_config.model)
    said: dict[str, Any] = {
        "most": most,
        "answers": equal(outputs(model, True), outputs(plain, False)),
        "scales": equal(scales(model), scales(plain)),
        "requantised": all(bool((s.log2() % 1 == 0).all()) for s in scales(plain)),
    }
    runner = SimpleNamespace(vllm_config=config, model=model, get_model=lambda: model)
    runner.reset_lora_state = runner.reset_encoder_cache = runner.reset_mm_cache = lambda: None
    with torch.inference_mode(), torch.device("cpu"):
        GPUModelRunner.reload_weights(runner, weights_path=other)
    again = loaded_plain(config, other)
    said["other answers"] = equal(outputs(again, False), outputs(plain, False))
    said["reloaded"] = equal(outputs(model, True), outputs(again, False))
    said["reloaded scales"] = equal(scales(model), scales(again))
    return said


def loaded_plain(config: Any, model: str) -> torch.nn.Module:
    from vllm.engine.arg_utils import EngineArgs

    plain = EngineArgs(model=model, enforce_eager=True).create_engine_config()
    return load(plain, lambda _: None)


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_scales_that_come_from_the_weight_are_right_on_every_replica(
    placement, checkpoints, monkeypatch
):
    """And no replica holds more raw weights at once than a decoder layer has, beside its own."""
    monkeypatch.syspath_prepend(PLUGINS)
    model, other = map(str, checkpoints)
    sharding = {"layers": list(NAMES), "placement": placement, "verify": True}
    for said in run_engines(Path(model), sharding, functools.partial(life, other=other)):
        assert not isinstance(said, str), said
        assert said["requantised"]
        assert said["answers"] == said["scales"] == [True] * len(LAYERS) * len(NAMES)
        assert 0 < said["most"] <= 2 * LAYER_NUMEL
        assert not all(said["other answers"])
        assert said["reloaded"] == said["reloaded scales"] == [True] * len(LAYERS) * len(NAMES)
