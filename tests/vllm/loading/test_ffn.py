"""Dense MLPs in parts on the real vLLM model and two real ranks: built, loaded and computed."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hosted.engines import join, load, run_engines
from hosted.tiny import CONFIG, write_config
from recital import model_path
from serving.weights import with_other_weights

KEY = "denseffn_tensor_parallel_size"
DENSE_LAYERS, WIDTH = range(4), 256
LOADS = [(1, 1), (5, 2), (1, 30), (8, 8), (0, 3)]
"""Tokens of both ranks in one forward after another."""


def mlp_of(model: torch.nn.Module, layer: int) -> Any:
    return model.get_submodule(f"model.layers.{layer}.mlp")


def stored(config: Any, layer: int, name: str) -> torch.Tensor:
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    return checkpoint[f"model.layers.{layer}.mlp.{name}_proj.weight"]


def part_of(config: Any, layer: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a rank is to hold: half of the gate and of the other, and the columns they feed."""
    half = slice(part * WIDTH // 2, (part + 1) * WIDTH // 2)
    gate, up, down = (stored(config, layer, name) for name in ("gate", "up", "down"))
    return torch.cat([gate[half], up[half]]), down[:, half]


def tokens_of(rank: int, forward: int, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 * forward + rank)
    return torch.randn(count, CONFIG["hidden_size"], generator=draw).bfloat16()


def made_of(config: Any, layer: int, x: torch.Tensor) -> torch.Tensor:
    """The same split in one process."""
    partial = []
    for part in range(2):
        gate_up, down = part_of(config, layer, part)
        gate, up = torch.nn.functional.linear(x, gate_up).chunk(2, dim=-1)
        partial.append(torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down))
    return partial[0] + partial[1]


def forwards(rank: int, config: Any, model: torch.nn.Module) -> list[bool]:
    """Whether this rank's rows equal those of the same split in one process, layer by layer."""
    from vllm.forward_context import set_forward_context

    equal = []
    for number, load_ in enumerate(LOADS):
        counts = torch.tensor(load_, dtype=torch.int32)
        with (
            torch.inference_mode(),
            set_forward_context(None, config, num_tokens=load_[rank], num_tokens_across_dp=counts),
        ):
            for layer in DENSE_LAYERS:
                x = tokens_of(rank, number, load_[rank])
                everyone = torch.cat([tokens_of(r, number, load_[r]) for r in range(2)])
                expected = made_of(config, layer, everyone).split(list(load_))[rank]
                equal.append(torch.equal(mlp_of(model, layer)(x), expected))
    return equal


def life(rank: int, config: Any) -> dict[str, Any]:
    built: dict[str, Any] = {}

    def between(model: torch.nn.Module) -> None:
        mlp = mlp_of(model, 0)
        built["shapes"] = [tuple(x.weight.shape) for x in (mlp.gate_up_proj, mlp.down_proj)]

    model = load(config, between)
    shared = model.get_submodule("model.layers.4.mlp.shared_experts")
    said = None
    with torch.inference_mode():
        try:
            mlp_of(model, 0)(tokens_of(rank, 0, 1))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    return {
        **built,
        "right": [
            torch.equal(held, wanted)
            for layer in DENSE_LAYERS
            for held, wanted in zip(
                (mlp_of(model, layer).gate_up_proj.weight, mlp_of(model, layer).down_proj.weight),
                part_of(config, layer, rank),
                strict=True,
            )
        ],
        "equal": forwards(rank, config, model),
        "shared": (shared.gate_up_proj.tp_size, shared.down_proj.reduce_results),
        "split": [
            name for name, module in model.named_modules() if hasattr(module, "layershard_part")
        ],
        "without a forward": said,
        "made ready": made_ready(model),
        "sharded": [
            (series.name, list(series.plan.series.layer_ids)) for series in sharded_series()
        ],
    }


def made_ready(model: torch.nn.Module) -> str | None:
    """What vLLM's worker says where its process is made ready for a checkpoint."""
    from vllm.v1.worker.gpu_worker import Worker

    worker = object.__new__(Worker)  # vLLM's own asks for a device
    worker.model_runner = SimpleNamespace(get_model=lambda: model)  # type: ignore[assignment]
    try:
        return worker.checkpoint_prepare()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def sharded_series() -> list[Any]:
    from vllm_layershard.runtime.ops import bound_series

    return bound_series()


SPLIT = [
    f"model.layers.{layer}.mlp.{name}_proj"
    for layer in DENSE_LAYERS
    for name in ("gate_up", "down")
]


@pytest.mark.parametrize("sharding", [None, {"layers": ["o_proj", "gate_up_proj"]}])
def test_each_rank_holds_and_loads_its_part_and_every_rank_gets_the_whole(sharding):
    """`gate_up_proj` names dense MLPs and shared experts: only these are sharded then."""
    found = run_engines(model_path(), sharding, life, **{KEY: 2})
    for seen in found:
        assert not isinstance(seen, str), seen
        assert seen["shapes"] == [(WIDTH, 128), (128, WIDTH // 2)]
        assert seen["right"] == [True] * 8
        assert seen["equal"] == [True] * len(LOADS) * 4
        assert seen["shared"] == (1, False)
        assert seen["split"] == SPLIT
        assert seen["made ready"].startswith("HostError: a checkpoint of this worker's process")
        assert seen["without a forward"].startswith(
            f"HostError: {KEY}: model.layers.0.mlp runs in a forward for which the data-parallel "
            "ranks have agreed on no token counts"
        )
        wanted = [("o_proj", list(range(9))), ("gate_up_proj", list(range(4, 9)))]
        assert seen["sharded"] == ([] if sharding is None else wanted)


def reloaded(rank: int, config: Any, other: str) -> dict[str, Any]:
    model = load(config, lambda _: None)
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    former = config.model_config.model
    before = forwards(rank, config, model)
    with torch.inference_mode(), torch.device("cpu"):
        reload_weights(config, model, None, other, is_checkpoint_format=True)
    after = forwards(rank, config, model)
    config.model_config.model = former
    return {"before": before, "after": after, "stale": forwards(rank, config, model)}


def test_a_reload_brings_every_rank_its_part(tmp_path):
    names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    other = with_other_weights(model_path(), tmp_path / "other", names)
    work = functools.partial(reloaded, other=str(other))
    for seen in run_engines(model_path(), None, work, **{KEY: 2}):
        assert not isinstance(seen, str), seen
        assert all(seen["before"])
        assert all(seen["after"])
        assert not any(seen["stale"][:4]), "the weights are others"


ONLY_DENSE = {"layers": ["o_proj", "mlp.down_proj"]}


def test_a_name_that_only_split_linears_have_says_so():
    for seen in run_engines(model_path(), ONLY_DENSE, refused, **{KEY: 2}):
        assert seen.startswith("PlanError: 'mlp.down_proj' matches no linear of this model"), seen
        assert f"the linears of dense MLPs are split ({KEY}), and not sharded" in seen


def refused(rank: int, config: Any) -> str:
    load(config, lambda _: None)
    return "loaded"


NO_DENSE = CONFIG | {"first_k_dense_replace": 0}
ODD = CONFIG | {"intermediate_size": 250 + 1}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (NO_DENSE, "PlanError: denseffn_tensor_parallel_size: DeepseekV3ForCausalLM has no decoder "
         "layer without routed experts, so there is no dense MLP to split"),
        (ODD, "PlanError: denseffn_tensor_parallel_size: model.layers.0.mlp has an intermediate "
         "size of 251, which gives no 2 even parts"),
    ],
)  # fmt: skip
def test_a_model_that_gives_no_parts_is_refused_on_every_rank(tmp_path, shape, said):
    model = write_config(tmp_path / "model", shape)
    for seen in run_engines(model, None, refused, **{KEY: 2}):
        assert seen.startswith(said), seen


def in_blocks(rank: int, config: Any) -> dict[str, Any]:
    """An MLP as vLLM builds it, with its real linears in blocks of fp8; a GPU's kernel for them."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.kernels import linear as kernels
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.model_executor.models.deepseek_v2 import DeepseekV2MLP
    from vllm.platforms import PlatformEnum

    from vllm_layershard.errors import LayerShardError
    from vllm_layershard.hosts.ffn.mlps import DenseMlp, block_of, check_mlp
    from vllm_layershard.hosts.ffn.part import make_part
    from vllm_layershard.plan import ParallelLayout
    from vllm_layershard.plan.ffn import FfnSplit

    kernel = kernels.TritonFp8BlockScaledMMKernel
    kernel.is_supported = classmethod(lambda cls, capability=None: (True, None))
    kernel.can_implement = classmethod(lambda cls, config: (True, None))
    kernels._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU] = [kernel]
    quant = Fp8Config(True, "dynamic", weight_block_size=[128, 128])
    with set_current_vllm_config(config):
        join()
        whole, split = (DeepseekV2MLP(256, 512, "silu", quant, prefix="m") for _ in range(2))
        scaled = DeepseekV2MLP(256, 512, "silu", Fp8Config(True, "dynamic"), prefix="s")
        mlp = DenseMlp("m", split, split.gate_up_proj, split.down_proj)
        check_mlp(mlp)
        for linear in (mlp.gate_up, mlp.down):
            make_part(linear, rank, 2)
    draw = torch.Generator().manual_seed(0)
    for module in (whole, split):
        draw.manual_seed(0)
        for linear, pieces in ((module.gate_up_proj, (0, 1)), (module.down_proj, (None,))):
            for piece in pieces:
                rows, columns = (512, 256) if piece is not None else (256, 512)
                weight = torch.randn(rows, columns, generator=draw).to(torch.float8_e4m3fn)
                scale = torch.rand(rows // 128, columns // 128, generator=draw)
                for name, tensor in (("weight", weight), ("weight_scale_inv", scale)):
                    parameter = getattr(linear, name)
                    at = () if piece is None else (piece,)
                    parameter.weight_loader(parameter, tensor, *at)
    half = slice(rank * 256, rank * 256 + 256)
    blocks = slice(rank * 2, rank * 2 + 2)
    gate_up, down = whole.gate_up_proj, whole.down_proj
    both = lambda t, part, n: torch.cat([t[part], t[n:][part]])  # noqa: E731

    def refusal(attempt) -> str:
        try:
            attempt()
        except LayerShardError as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    eight = FfnSplit(ParallelLayout(dp=8), 8)
    return {
        "right": [
            torch.equal(mlp.gate_up.weight.float(), both(gate_up.weight.float(), half, 512)),
            torch.equal(mlp.gate_up.weight_scale_inv, both(gate_up.weight_scale_inv, blocks, 4)),
            torch.equal(mlp.down.weight.float(), down.weight.float()[:, half]),
            torch.equal(mlp.down.weight_scale_inv, down.weight_scale_inv[:, blocks]),
        ],
        "block": [block_of(mlp.gate_up), block_of(mlp.down)],
        "per tensor": refusal(
            lambda: check_mlp(DenseMlp("s", scaled, scaled.gate_up_proj, scaled.down_proj))
        ),
        "too small": refusal(lambda: eight.require_even("m", 512, block_of(mlp.down)[0])),
    }


def test_a_checkpoint_in_blocks_of_fp8_gives_each_rank_whole_blocks_and_their_scales():
    for seen in run_engines(model_path(), None, in_blocks, **{KEY: 2}):
        assert not isinstance(seen, str), seen
        assert seen["right"] == [True] * 4
        assert seen["block"] == [(128, 128)] * 2
        assert seen["per tensor"].startswith(
            f"HostError: {KEY}: s.gate_up_proj: its quant method (Fp8LinearMethod) is not split"
        )
        assert seen["too small"].startswith(
            f"PlanError: {KEY}: m has an intermediate size of 512, which gives no 8 even parts of "
            "whole blocks of 128"
        )


def alone(rank: int, config: Any) -> str:
    """One of the ranks has not the key, or another size."""
    if rank == 1:
        config.additional_config = {"layer_sharding": ["o_proj"]}
    load(config, lambda _: None)
    return "loaded"


@pytest.mark.parametrize("sharding", [None, ["o_proj"]])
def test_ranks_that_were_not_given_the_same_are_named(sharding):
    for seen in run_engines(model_path(), sharding, alone, **{KEY: 2}):
        assert re.match("MismatchError: the ranks of layer sharding were not started alike", seen)
        assert KEY in seen
