"""Rows of vLLM's own linears, by their own quant methods, on two real ranks: fp8 in blocks.

The kernel is one that a GPU has. Its class is vLLM's, with all that comes before the product; the
product itself is in plain torch, which runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gloo.moving import is_poisoned
from hosted.engines import join, run_engines
from hosted.tiny import CONFIG, write_config

LAYERS = range(3)
COLUMNS, BLOCK = 256, 128
KERNEL = "TritonFp8BlockScaledMMKernel"
START = 8
LOADS = [(1, 1), (5, 2), (1, 30), (0, 3), (0, 0), (7, 7)]
ROWS = {"o_proj": [640], "fused": [256, 256 + 64]}
"""The rows of each linear's parts: five blocks, and four and a half."""


def choose(kernel: Any) -> None:
    """Have vLLM choose the kernel that it would on a GPU, with a product that runs here."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    def product(self: Any, A: Any, B: Any, As: Any, Bs: Any) -> torch.Tensor:
        scales = Bs.repeat_interleave(BLOCK, 0)[: len(B)].repeat_interleave(BLOCK, 1)
        inputs = A.float() * As.repeat_interleave(BLOCK, 1)
        return (inputs @ (B.float() * scales).t()).bfloat16()

    kernel.is_supported = classmethod(lambda cls, capability=None: (True, None))
    kernel.can_implement = classmethod(lambda cls, config: (True, None))
    kernel.apply_block_scaled_mm = product
    linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU] = [kernel]


def stack(parts: dict[str, list[int]], config: dict[str, Any]) -> Callable[[], nn.Module]:
    """Constructs decoder layers of these linears."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.quantization import get_quantization_config

    quant_config = get_quantization_config("fp8").from_config({"quant_method": "fp8", **config})

    class Layer(nn.Module):
        def __init__(self, layer: int) -> None:
            super().__init__()
            for name, rows in parts.items():
                prefix = f"layers.{layer}.{name}"
                linear = (
                    RowParallelLinear(
                        COLUMNS, rows[0], bias=True, quant_config=quant_config, prefix=prefix
                    )
                    if len(rows) == 1
                    else MergedColumnParallelLinear(
                        COLUMNS, rows, bias=False, quant_config=quant_config, prefix=prefix
                    )
                )
                setattr(self, name, linear)

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    def construct() -> nn.Module:
        model = nn.Module()
        model.layers = nn.ModuleList(Layer(layer) for layer in LAYERS)
        return model

    return construct


def fill(model: nn.Module, parts: Any) -> None:
    """What a checkpoint would bring; a layer that this rank does not load takes nothing."""
    for index, layer in enumerate(model.layers):
        for name in parts:
            draw = torch.Generator().manual_seed(index)
            for _, parameter in sorted(getattr(layer, name).named_parameters()):
                drawn = torch.randn(parameter.shape, generator=draw).abs() + 0.1
                if not parameter.is_meta:
                    parameter.data.copy_(drawn.to(parameter.dtype))
    for layer in model.layers:
        for name in parts:
            linear = getattr(layer, name)
            linear.quant_method.process_weights_after_loading(linear)


@torch.inference_mode()
def forwards(rank: int, config: Any) -> dict[str, Any]:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.kernels import linear as kernels
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        join()
        choose(getattr(kernels, KERNEL))
        return run(rank, config)


def run(rank: int, config: Any) -> dict[str, Any]:
    from vllm.forward_context import set_forward_context

    from vllm_layershard.hosts.model import build
    from vllm_layershard.runtime.ops import bound_series
    from vllm_layershard.schema import validated

    construct = stack(ROWS, {"activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]})
    model = build(validated(config.additional_config["layer_sharding"]), config, construct)
    plain = construct()
    fill(model, ROWS)
    fill(plain, ROWS)
    equal, still = [], []
    for number, counts in enumerate(LOADS):
        weights, mine = max(counts) >= START, counts[rank]
        agreed = torch.tensor(counts, dtype=torch.int32)
        with set_forward_context(None, config, num_tokens=mine, num_tokens_across_dp=agreed):
            for layer in LAYERS:
                torch.ops.layershard.reach(torch.zeros(mine, 1), f"layers.{layer}")
                if layer == 0:
                    for series in () if weights else bound_series():
                        series.slots.poison()
                for name in ROWS:
                    draw = torch.Generator().manual_seed(10 * number + layer)
                    everyone = torch.randn(sum(counts), COLUMNS, generator=draw).bfloat16()
                    x = everyone.split(list(counts))[rank]
                    made = getattr(model.layers[layer], name)(x)[0]
                    whole = getattr(plain.layers[layer], name)(x)[0]
                    equal.append(
                        torch.equal(made, whole)
                        if weights
                        else torch.allclose(made.float(), whole.float(), atol=1 / 4, rtol=1 / 64)
                    )
        if not weights:
            still += [is_poisoned(series) for series in bound_series()]
    kernel = type(plain.layers[0].o_proj.quant_method.fp8_linear).__name__
    plans = {series.name: series.plan for series in bound_series()}
    return {
        "kernel": kernel,
        "equal": equal,
        "still": still,
        "rows": {name: [plan.rows(r) for r in range(2)] for name, plan in plans.items()},
        "forwards": [(s.counters.forwards, s.counters.activation_forwards) for s in bound_series()],
    }


SHARDING = {
    "layers": [*ROWS],
    "move": "auto",
    "move_weights_from": START,
    "placement": "striped",
    "verify": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    return write_config(tmp_path_factory.mktemp("model"), CONFIG)


def test_fp8_in_blocks_is_computed_by_whole_blocks_of_rows(model):
    still = sum(max(load) < START for load in LOADS)
    for seen in run_engines(model, SHARDING, forwards):
        assert not isinstance(seen, str), seen
        assert seen["kernel"] == KERNEL
        assert seen["rows"] == {"o_proj": [(0, 256), (256, 640)], "fused": [(0, 256), (256, 576)]}
        assert seen["equal"] == [True] * len(LOADS) * len(LAYERS) * len(ROWS)
        assert seen["still"] == [True] * still * len(ROWS)
        assert seen["forwards"] == [(len(LOADS), still)] * len(ROWS)


@torch.inference_mode()
def refusals(rank: int, config: Any) -> dict[str, str]:
    """What is said of linears whose rows cannot be computed alone."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.kernels import linear as kernels
    from vllm.utils.torch_utils import set_default_torch_dtype

    from vllm_layershard.errors import LayerShardError
    from vllm_layershard.hosts.linears import describe_linear
    from vllm_layershard.hosts.moves.rows import check_rows
    from vllm_layershard.plan.rows import rows_of

    class PackingKernel(getattr(kernels, KERNEL)):
        """It could keep its rows in any order."""

    def said(kernel: Any, block: list[int] | None, parts: list[int] | None = None) -> str:
        choose(kernel)
        stated = {"weight_block_size": block} if block else {}
        model = stack(ROWS, {"activation_scheme": "dynamic", **stated})()
        module = model.layers[1].fused
        module.output_partition_sizes = parts or module.output_partition_sizes
        try:
            check_rows(module, rows_of(describe_linear(module, 1)))
        except LayerShardError as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        join()
        square = [BLOCK, BLOCK]
        return {
            "known": said(getattr(kernels, KERNEL), square),
            "unknown": said(PackingKernel, square),
            "parts": said(getattr(kernels, KERNEL), square, [192, 384]),
            "per tensor": said(getattr(kernels, KERNEL), None),
        }


def test_linears_of_which_no_rows_can_be_computed_alone_are_refused_by_name(model):
    for seen in run_engines(model, SHARDING, refusals):
        assert not isinstance(seen, str), seen
        placed = "layer_sharding: layers.1.fused: it would be placed as stripes of rows"
        assert seen["known"] == "accepted"
        assert seen["unknown"].startswith(f"HostError: {placed}")
        assert (
            "its kernel (PackingKernel) is not known to leave its rows in order" in seen["unknown"]
        )
        assert seen["parts"].startswith(f"HostError: {placed}")
        assert "its parts of [192, 384] rows do not end at blocks of 128" in seen["parts"]
        assert seen["per tensor"].startswith(f"PlanError: {placed}")
        assert "weight_scale: float32) no rank can compute some rows" in seen["per tensor"]


def foreign(rank: int, config: Any) -> str:
    """A method whose tensors are plain, and which is none of vLLM's two."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

    from vllm_layershard.errors import HostError
    from vllm_layershard.hosts.moves.rows import check_rows
    from vllm_layershard.plan.rows import Rows

    class OfAPlugin(UnquantizedLinearMethod):
        pass

    with set_current_vllm_config(config):
        join()
        module = RowParallelLinear(COLUMNS, 64, bias=False, prefix="layers.0.o_proj")
        check_rows(module, Rows(64, 2 * COLUMNS))
        module.quant_method = OfAPlugin()
        with pytest.raises(HostError) as error:
            check_rows(module, Rows(64, 2 * COLUMNS))
    return str(error.value)


def test_a_quant_method_of_another_package_is_refused_by_name(model):
    for said in run_engines(model, SHARDING, foreign):
        assert "layers.0.o_proj: it would be placed as stripes of rows" in said, said
        assert "its quant method (OfAPlugin) computes no rows alone here" in said
