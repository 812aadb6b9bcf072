"""LoRA's second stream runs a linear within an op: the wrapper waits at its entry."""

from __future__ import annotations

import pytest

from hosted.child import run_fresh
from hosted.tiny import DENSE, write_config

STREAM = """
import sys
from types import SimpleNamespace
import torch
from vllm import envs
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.lora.layers import base_linear
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
from vllm.model_executor.layers.linear import RowParallelLinear
from hosted.engines import join
from vllm_layershard.hosts.graphs.hidden import wait_ahead_of_adapters
from vllm_layershard.hosts.sharded_linear import serve_through
from vllm_layershard.runtime.ops import Place, bind
from vllm.compilation.backends import split_graph

KEY = "model.layers.0.self_attn.o_proj"
if envs.VLLM_LORA_ENABLE_DUAL_STREAM:  # what would ask a GPU
    base_linear._get_lora_aux_cuda_stream = lambda: None
    base_linear.current_platform = SimpleNamespace(is_cuda_alike=lambda: True)
    torch.cuda.Event = lambda: None

inside, waits, graphs = [0], [], []

def noted(position):
    waits.append([position, inside[0]])

place = Place(SimpleNamespace(wait=noted, has_arrived=lambda position: bool(waits)), 3)
bind("model.layers.0", KEY, place)
config = EngineArgs(model=sys.argv[1], skip_tokenizer_init=True).create_engine_config()
with set_current_vllm_config(config):
    join()
    linear = RowParallelLinear(16, 8, bias=False, prefix=KEY)
    linear.weight.data = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(
        linear.weight.dtype
    )
    linear._cpu_skip_gemm_dispatch = True
    linear.quant_method.process_weights_after_loading(linear)
    linear.quant_method = SimpleNamespace(_inner=linear.quant_method)  # as while it was loaded
    serve_through(linear, place)
    wait_ahead_of_adapters()
    wrapper = RowParallelLinearWithLoRA(linear)
wrapper.output_slices, wrapper.lora_a_stacked, wrapper.lora_b_stacked = (8,), (), ()
wrapper.punica_wrapper = SimpleNamespace(add_lora_linear=lambda output, *a, **k: output)
within = wrapper._apply_async_impl

def deeper(*given):
    inside[0] += 1
    try:
        return within(*given)
    finally:
        inside[0] -= 1

wrapper._apply_async_impl = deeper

def keep(graph, inputs):
    graphs.append(graph)
    return graph.forward

x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).to(linear.weight.dtype)
equal = []
with torch.inference_mode(), set_forward_context(None, config):
    expected = torch.nn.functional.linear(x, linear.weight)
    for run in (wrapper, torch.compile(lambda x: wrapper(x), backend=keep, fullgraph=True)):
        equal.append(bool(torch.equal(run(x)[0], expected)))
_, pieces = split_graph(graphs[0], ["layershard::reach", "layershard::wait"])
names = [
    [piece.is_splitting_graph, str(node.target).removesuffix(".default")]
    for piece in pieces
    for node in piece.graph.graph.nodes
    if str(node.target).startswith(("layershard.", "vllm."))
]
result = {"equal": equal, "waits": waits, "ops": names}
"""

WAIT, OP = [True, "layershard.wait"], [False, "vllm.lora_linear_async"]


@pytest.mark.parametrize(("streams", "ops"), [("1", [WAIT, OP]), ("0", [WAIT])])
def test_no_wait_is_below_the_op_of_a_second_stream(tmp_path, streams, ops):
    model = write_config(tmp_path / "model", DENSE)
    found = run_fresh(STREAM, str(model), VLLM_LORA_ENABLE_DUAL_STREAM=streams)
    assert found == {"equal": [True, True], "waits": [[3, 0], [3, 0]], "ops": ops}
