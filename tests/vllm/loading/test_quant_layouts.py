"""vLLM's quant methods on their real parameter layouts, up to the kernel call, on two real ranks.

Their kernels run on a GPU only, but what these do to the weights after loading is plain torch: the
real kernel classes are told that this machine will do, and their `process_weights_after_loading`
is run. (Marlin, Machete and Exllama repack with ops of CUDA even there: not here.) What is compared
with is the same linear, unsharded, with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hosted.engines import RANKS, join, run_engines
from hosted.tiny import CONFIG, write_config

LAYERS = range(5)
ROWS, COLUMNS = 384, 256


class Case(NamedTuple):
    """A method, its config, the kernel that a GPU has; what moves, and what stays on every rank."""

    method: str
    config: dict[str, Any]
    kernels: str
    kernel: str
    moving: dict[str, str]
    staying: set[str]


def compressed(format_: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"format": format_, "config_groups": {"group_0": group}, "ignore": []}


INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}

CASES = {
    "fp8, scales of blocks": Case(
        "fp8",
        {"activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        "_POSSIBLE_FP8_BLOCK_KERNELS",
        "TritonFp8BlockScaledMMKernel",
        {"weight": "float8_e4m3fn"},
        {"weight_scale_inv", "bias"},
    ),
    "int8, transposed": Case(
        "compressed-tensors",
        compressed(
            "int-quantized",
            INT8 | {"strategy": "channel"},
            INT8 | {"strategy": "token", "dynamic": True, "symmetric": False},
        ),
        "_POSSIBLE_INT8_KERNELS",
        "CutlassInt8ScaledMMLinearKernel",
        {"weight": "int8"},
        {"weight_scale", "azp_adj", "bias"},
    ),
    "nvfp4, renamed": Case(
        "compressed-tensors",
        compressed(
            "nvfp4-pack-quantized",
            FP4 | {"group_size": 16},
            FP4 | {"group_size": 16, "dynamic": "local"},
        ),
        "_POSSIBLE_NVFP4_KERNELS",
        "EmulationNvFp4LinearKernel",
        {"weight": "uint8", "weight_scale": "float8_e4m3fn"},
        {"weight_global_scale", "input_global_scale", "input_global_scale_inv", "alpha", "bias"},
    ),
    "int4 with zero points, packed anew": Case(
        "compressed-tensors",
        compressed("pack-quantized", INT4),
        "_POSSIBLE_KERNELS",
        "TritonW4A16LinearKernel",
        {"weight_packed": "int32", "weight_scale": "bfloat16"},
        {"weight_zero_point", "weight_shape", "bias"},
    ),
    "awq": Case(
        "auto_awq",
        {"bits": 4, "group_size": 32, "zero_point": True, "modules_to_not_convert": ["none"]},
        "_POSSIBLE_KERNELS",
        "TritonW4A16LinearKernel",
        {"qweight": "int32", "scales": "bfloat16"},
        {"qzeros", "bias"},
    ),
    "gptq": Case(
        "auto_gptq",
        {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False},
        "_POSSIBLE_KERNELS",
        "TritonW4A16LinearKernel",
        {"qweight": "int32", "scales": "bfloat16"},
        {"qzeros", "bias"},
    ),
}


def choose(case: Case) -> None:
    """Have vLLM choose the kernel that it would on a GPU."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    kernel = getattr(linear, case.kernel)
    kernel.is_supported = classmethod(lambda cls, capability=None: (True, None))
    kernel.can_implement = classmethod(lambda cls, config: (True, None))
    getattr(linear, case.kernels)[PlatformEnum.CPU] = [kernel]


def stack(case: Case) -> Callable[[], nn.Module]:
    """Constructs decoder layers of one quantised linear each."""
    from vllm.model_executor.layers.linear import RowParallelLinear
    from vllm.model_executor.layers.quantization import get_quantization_config

    quant_config = get_quantization_config(case.method).from_config(
        {"quant_method": case.method.removeprefix("auto_")} | case.config
    )

    class Layer(nn.Module):
        def __init__(self, layer: int) -> None:
            super().__init__()
            self.o_proj = RowParallelLinear(
                COLUMNS, ROWS, quant_config=quant_config, prefix=f"layers.{layer}.o_proj"
            )

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return self.o_proj(hidden_states)[0]

    def construct() -> nn.Module:
        model = nn.Module()
        model.layers = nn.ModuleList(Layer(layer) for layer in LAYERS)
        return model

    return construct


def fill(model: nn.Module) -> list[int]:
    """What a checkpoint would bring, different in each layer; the layers that took it."""
    taken = []
    for index, layer in enumerate(model.layers):
        draw = torch.Generator().manual_seed(index)
        for _, parameter in sorted(layer.o_proj.named_parameters()):
            if not parameter.is_meta:
                kind, integers = parameter.dtype, not parameter.dtype.is_floating_point
                low, high = (-99, 99) if kind != torch.uint8 else (0, 255)
                drawn = (
                    torch.randint(low, high, parameter.shape, generator=draw)
                    if integers
                    else torch.rand(parameter.shape, generator=draw) + 0.5
                )
                parameter.data.copy_(drawn.to(kind))
                taken.append(index)
    return sorted(set(taken))


def bytes_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    from vllm_layershard.runtime.tensors import flat

    layout = (tensor.dtype, tensor.shape, tensor.stride(), type(tensor))
    return (*layout, flat(tensor).view(torch.uint8).numpy().tobytes())


@torch.inference_mode()
def processed(rank: int, config: Any, name: str) -> dict[str, Any]:
    from vllm_layershard.hosts.model import build
    from vllm_layershard.runtime.ops import bound_series
    from vllm_layershard.runtime.tensors import held
    from vllm_layershard.schema import validated

    case = CASES[name]
    choose(case)
    model = build(validated(["o_proj"]), config, stack(case))
    plain = stack(case)()
    taken = fill(model)
    fill(plain)
    for one in (model, plain):
        for layer in one.layers:
            layer.o_proj.quant_method.process_weights_after_loading(layer.o_proj)
    (series,) = bound_series()
    moving = series.weights(0)
    slots = [tensor.data_ptr() for slot in series.slots.tensors for tensor in slot]
    series.slots.poison()
    equal, in_slots, x = [], [], torch.empty(0)
    for index, layer in enumerate(model.layers):
        torch.ops.layershard.reach(x, f"layers.{index}")
        torch.ops.layershard.wait(x, f"layers.{index}.o_proj")
        mine, theirs = held(layer.o_proj), held(plain.layers[index].o_proj)
        equal += [set(mine) == set(theirs)]
        equal += [bytes_of(mine[key]) == bytes_of(theirs[key]) for key in mine]
        in_slots += [mine[key].data_ptr() in slots for key in moving if index % RANKS != rank]
    return {
        "taken": taken,
        "kernel": kernel_of(plain.layers[0].o_proj),
        "moving": {key: str(t.dtype).removeprefix("torch.") for key, t in moving.items()},
        "staying": set(held(plain.layers[0].o_proj)) - set(moving),
        "equal": equal,
        "in slots": in_slots,
        "held": (series.resident_bytes(), series.slots.nbytes()),
        "ledger": (series.plan.ledger.resident_bytes[rank], series.plan.ledger.slot_bytes),
    }


def kernel_of(linear: Any) -> str:
    """The class that the method or its scheme chose."""
    method, scheme = linear.quant_method, getattr(linear, "scheme", None)
    found = [
        type(value).__name__
        for holder in (method, scheme)
        for key, value in (vars(holder) if holder is not None else {}).items()
        if key in ("kernel", "fp8_linear")
    ]
    return found[0]


def all_processed(rank: int, config: Any) -> dict[str, Any]:
    from vllm.config import set_current_vllm_config
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        join()
        return {name: processed(rank, config, name) for name in CASES}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[Any]:
    model = write_config(tmp_path_factory.mktemp("model"), CONFIG)
    found = run_engines(model, ["o_proj"], all_processed)
    for one in found:
        assert not isinstance(one, str), one
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_owners_bytes_before_the_kernel_runs(name, seen):
    for rank, of in enumerate(seen):
        owned = [layer for layer in LAYERS if layer % RANKS == rank]
        assert of[name]["taken"] == owned
        assert of[name]["kernel"] == CASES[name].kernel
        assert of[name]["moving"] == CASES[name].moving
        assert of[name]["staying"] == CASES[name].staying
        assert all(of[name]["equal"])
        assert len(of[name]["in slots"]) == len(CASES[name].moving) * (len(LAYERS) - len(owned))
        assert all(of[name]["in slots"])
        assert of[name]["held"] == of[name]["ledger"]
