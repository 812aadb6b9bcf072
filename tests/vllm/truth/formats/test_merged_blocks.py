"""Merged linears with blocks of scales: refused where vLLM's own loader has no place for a scale.

vLLM builds them all (linear.py, `_maybe_allow_fp8_block_shape_mismatch`). Then its loader fails, or
puts two scales into one row.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hosted.child import run_child
from hosted.tiny import DENSE, write_config
from vllm_layershard.errors import PlanError
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.shape import Shape

LOAD = """
import json, sys, tempfile
import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from truth.vllm_inventory import stand_in_for_kernels

BLOCK = 128

def right(outs, tp):
    '''Whether each row of each rank is multiplied with the scale that its checkpoint gives it.'''
    scales = [
        torch.arange(-(-out // BLOCK)).float().add(100 * (i + 1)).repeat(2, 1).T.contiguous()
        for i, out in enumerate(outs)
    ]
    for rank in range(tp):
        sizes = (256, list(outs)) if len(outs) > 1 else (256, outs[0])
        kind = MergedColumnParallelLinear if len(outs) > 1 else ColumnParallelLinear
        parallel_state._TP.rank_in_group, parallel_state._TP.world_size = rank, tp
        try:
            linear = kind(
                *sizes, bias=False, quant_config=quantization, params_dtype=torch.bfloat16,
                prefix="linear",
            )
            held = linear.weight_scale_inv
            for i, scale in enumerate(scales):
                held.weight_loader(held, scale, *([i] if len(outs) > 1 else []))
        except (RuntimeError, ValueError) as error:
            return False
        start = 0
        for out, scale in zip(outs, scales):
            rows = out // tp
            for row in range(rows):
                if held[(start + row) // BLOCK, 0] != scale[(rank * rows + row) // BLOCK, 0]:
                    return False
            start += rows
    return True

config = EngineArgs(model=sys.argv[2], skip_tokenizer_init=True).create_engine_config()
stand_in_for_kernels()
quantization = Fp8Config(
    is_checkpoint_fp8_serialized=True, activation_scheme="dynamic", weight_block_size=[BLOCK] * 2
)
with set_current_vllm_config(config):
    rendezvous = "file://" + tempfile.mktemp()
    init_distributed_environment(1, 0, rendezvous, 0, "gloo")
    initialize_model_parallel(1, 1)
    result = [right(outs, tp) for outs, tp in json.loads(sys.argv[1])]
"""

CASES = [
    *[((64,), 1), ((192,), 1), ((128,), 2), ((256,), 2), ((384,), 2)],
    *[((64, 64), 1), ((128, 64), 1), ((64, 128), 1), ((192, 64), 1), ((64, 192), 1)],
    *[((64, 64, 128), 1), ((192, 64, 64), 1), ((256, 128, 64), 1), ((128, 128, 128), 1)],
    *[((128, 128), 2), ((256, 128), 2), ((256, 256), 2), ((512, 256, 256), 2)],
]
"""The rows of all ranks, of each part, and tp."""


def accepted(outs: tuple[int, ...], tp: int) -> bool:
    shape = Shape("linear", tuple(out // tp for out in outs), 256, "out")
    try:
        Fp8Block((128, 128)).linear("linear", shape, "bfloat16", tp)
    except PlanError:
        return False
    return True


def test_what_is_refused_is_what_vllm_does_not_load(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", DENSE)
    loaded = run_child(LOAD, json.dumps(CASES), str(model))
    assert {True, False} == set(loaded)
    assert dict(zip(CASES, loaded, strict=True)) == {case: accepted(*case) for case in CASES}


@pytest.mark.parametrize(
    ("outs", "tp", "remedy"),
    [
        ((64, 64), 2, "64 on each of 2 tensor-parallel ranks .*; choose another tp"),
        ((64, 64), 1, "64 rows .*; it has to be left unquantised"),
        ((48, 64), 4, "; it has to be left unquantised"),
    ],
)
def test_the_remedy_is_one(outs: tuple[int, ...], tp: int, remedy: str) -> None:
    with pytest.raises(PlanError, match=remedy):
        Fp8Block((128, 128)).linear("linear", Shape("linear", outs, 256, "out"), "bfloat16", tp)
