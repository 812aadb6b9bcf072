"""Compiled models: no kernel reads a buffer before the op that writes into it."""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

FORGOTTEN = """
import json, sys
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm_layershard.hosts.graphs.inductor import PATCHES, forgets_writers, remember_writers

eager, patched = json.loads(sys.argv[1])
config = VllmConfig()
config.compilation_config.mode = 0 if eager else 3
if patched:
    remember_writers(config)
torch._dynamo.config.suppress_errors = False
torch._inductor.config.force_disable_caches = True

@torch.library.custom_op("kept_order::product", mutates_args=("out",))
def product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    torch.mm(x, weight, out=out)

@product.register_fake
def _(out, x, weight):
    pass

def forward(x, weight, y, bias, narrow):
    '''The last kernel reads `out`. It is fused with the sum, which comes before the second op.'''
    first = torch.empty(y.shape[0], narrow.shape[1])
    product(first, y + bias, narrow)
    out = torch.full((x.shape[0], weight.shape[1]), float("nan"))
    product(out, x, weight)
    return first, torch.sigmoid(out) * y

torch.manual_seed(0)
shapes = (16, 32), (32, 64), (16, 64), (64,), (64, 8)
given = [torch.randn(shape) for shape in shapes]
expected = forward(*given)
found = torch.compile(forward, fullgraph=True)(*given)
result = {
    "right": [torch.allclose(*each) for each in zip(found, expected)],
    "patched": PATCHES[0].is_installed(),
    "forgets": forgets_writers(PATCHES[0].original()),
}
"""
"""As vLLM's products are: an op that writes into an argument, and a kernel that reads it."""


def compiled(*, eager: bool, patched: bool) -> dict[str, object]:
    found: dict[str, object] = run_child(FORGOTTEN, json.dumps([eager, patched]))
    return found


def test_a_kernel_runs_after_the_op_that_writes_what_it_reads():
    """Without the patch the second answer is NaN. A torch without the fault is not patched."""
    bare = compiled(eager=False, patched=False)
    assert bare["patched"] is False
    ours = compiled(eager=False, patched=True)
    assert ours == {"right": [True, True], "patched": bare["forgets"], "forgets": False}
    if bare["forgets"]:
        assert bare["right"] == [True, False], "the test no longer shows what the patch is for"


ASKED = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts import patches
from vllm_layershard.hosts.graphs.inductor import PATCHES, forgets_writers
import vllm.model_executor.model_loader.base_loader as loader

forgets = forgets_writers(PATCHES[0].original())
if not json.loads(sys.argv[3]):
    loader.initialize_model = lambda vllm_config, **_: None  # without the key that is all there is
patches.install()
config = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True,
    additional_config=json.loads(sys.argv[2]),
).create_engine_config()
try:
    loader.initialize_model(vllm_config=config, model_config=config.model_config)
except Exception:
    assert json.loads(sys.argv[3]), "without a key nothing of ours is built"  # nobody to meet
result = [forgets, PATCHES[0].is_installed()]
"""


@pytest.mark.parametrize("key", ["layer_sharding", "denseffn_tensor_parallel_size", "other"])
def test_every_compiled_model_of_ours_is_built_with_it_and_no_other(key, tmp_path):
    model = write_config(tmp_path / "model", CONFIG)
    value = {"layer_sharding": ["o_proj"], "denseffn_tensor_parallel_size": 2}.get(key, 1)
    ours = key != "other"
    forgets, installed = run_child(ASKED, str(model), json.dumps({key: value}), json.dumps(ours))
    assert installed == (forgets and ours)


def test_an_eager_model_patches_nothing():
    assert compiled(eager=True, patched=True)["patched"] is False


def test_a_later_torch_with_another_method_is_left_alone_and_said():
    said = run_child(
        """
import logging
class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
said = []
logging.getLogger("vllm").handlers = [Said(logging.WARNING)]
logging.getLogger("vllm").setLevel(logging.WARNING)
from torch._inductor.scheduler import SchedulerNode
from vllm_layershard.hosts.graphs.inductor import PATCHES, remember_writers
from vllm.config import VllmConfig
config = VllmConfig()
config.compilation_config.mode = 3
def recompute_size_and_body(self, *args, **kwargs):
    self.analysed.again()
SchedulerNode.recompute_size_and_body = recompute_size_and_body
said.clear()
remember_writers(config)
result = [said, PATCHES[0].is_installed()]
"""
    )
    assert said[1] is False
    (line,) = said[0]
    assert "recompute_size_and_body is not that of torch 2.13: " in line
