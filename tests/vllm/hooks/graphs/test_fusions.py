"""vLLM's fusion passes find on a graph with both ops what they find on one without.

The passes and patterns are vLLM's own. The kernels that they replace, and would put in their place,
are none of the CPU's: their schemas stand in, and Inductor is stopped once a pass has run.
"""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child, run_fresh

LAYERS = 3

MATCHED = """
import json, sys, types
for extension in ("_C", "_C_AVX512", "_C_AVX2"):  # the CPU's have other schemas
    sys.modules[f"vllm.{extension}"] = types.ModuleType(extension)
import torch

library = torch.library.Library("_C", "FRAGMENT")
other = torch.library.Library("standing_in", "DEF")

def stand_in(library, schema, fake=lambda *args, **kwargs: None):
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, fake, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)

QUANT = "Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
QUANT += "float fp8_min, float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed, "
BLOCKS = "Tensor? scale_ub, Tensor!? residual"
for schema in (
    "rms_norm(Tensor! result, Tensor input, Tensor weight, float epsilon) -> ()",
    "fused_add_rms_norm(Tensor! input, Tensor! residual, Tensor weight, float epsilon) -> ()",
    "silu_and_mul(Tensor! result, Tensor input) -> ()",
    "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox) -> ()",
    "static_scaled_fp8_quant(Tensor! result, Tensor input, Tensor scale, int[]? group_shape) -> ()",
    "dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()",
    "dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, "
    "Tensor? scale_ub) -> ()",
    f"per_token_group_fp8_quant({QUANT}bool dummy_is_tma_aligned) -> ()",
    "rms_norm_static_fp8_quant(Tensor! result, Tensor input, Tensor weight, Tensor scale, "
    "float epsilon) -> ()",
    "fused_add_rms_norm_static_fp8_quant(Tensor! result, Tensor input, Tensor! residual, "
    "Tensor weight, Tensor scale, float epsilon) -> ()",
    "rms_norm_dynamic_per_token_quant(Tensor! result, Tensor input, Tensor weight, "
    f"Tensor! scale, float epsilon, {BLOCKS}) -> ()",
    "rms_norm_per_block_quant(Tensor! result, Tensor input, Tensor weight, Tensor! scale, "
    f"float epsilon, {BLOCKS}, int group_size, bool is_scale_transposed) -> ()",
    "silu_and_mul_quant(Tensor! result, Tensor input, Tensor scale) -> ()",
):
    stand_in(library, schema)
stand_in(
    other,
    "allreduce_norm(Tensor! allreduce_in, Tensor! residual, Tensor!? norm_out, Tensor!? quant_out, "
    "Tensor!? scale_out, Tensor rms_gamma, float rms_eps, int pattern_code, int world_size, "
    "bool launch_with_pdl, bool fp32_acc, int max_token_num) -> ()",
)
stand_in(
    other,
    "product(Tensor x, Tensor weight) -> Tensor",
    lambda x, weight: x.new_empty((x.shape[0], weight.shape[1]), dtype=torch.bfloat16),
)

import vllm.ir.ops
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.pattern_matcher import PatternMatcherPass
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.compilation.passes.fusion import allreduce_rms_fusion as reduced
from vllm.compilation.passes.fusion.act_quant_fusion import ActivationQuantFusionPass
from vllm.compilation.passes.fusion.rms_quant_fusion import RMSNormQuantFusionPass
from vllm.compilation.passes.inductor_pass import enable_fake_mode
from vllm_layershard.hosts.graphs.fusions import move_ahead
from vllm_layershard.runtime import ops

EPSILON, WIDTH = 1e-6, 32
layers, which = int(sys.argv[1]), sys.argv[2]

def reduce(x):
    return torch.ops.vllm.all_reduce(x, group_name="tp")

reduced.get_tp_group = lambda: None
reduced.get_tensor_model_parallel_world_size = lambda: 2
reduced.tensor_model_parallel_all_reduce = reduce
reduced.flashinfer_comm = types.SimpleNamespace(
    AllReduceFusionPattern=types.SimpleNamespace(kARResidualRMSNorm=1)
)
reduced.flashinfer_trtllm_fused_allreduce_norm = torch.ops.standing_in.allreduce_norm.default

class AllReduces:
    '''vLLM's two patterns of an all-reduce and a norm, as its pass registers them.'''

    @enable_fake_mode
    def __init__(self, config):
        self.patterns = PatternMatcherPass(pass_name="all-reduces")
        parameters = reduced.FlashInferFusedAllReduceParams(world_size=2, max_token_num=64)
        for pattern in (
            reduced.AllReduceRMSNormPattern, reduced.AllReduceFusedAddRMSNormPattern
        ):
            pattern(EPSILON, torch.bfloat16, "cpu", parameters).register(self.patterns)

    def __call__(self, graph):
        self.matched_count = self.patterns.apply(graph)

def quantised(x, scale):
    result = torch.empty(x.shape, device=x.device, dtype=torch.float8_e4m3fn)
    torch.ops._C.static_scaled_fp8_quant(result, x, scale, [-1, -1])
    return result

def activated(x):
    result = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype, device=x.device)
    torch.ops._C.silu_and_mul(result, x)
    return result

def stack(x, scale, gamma, square, wide, tall):
    '''Decoder layers with both ops where the hooks and the linears put them.'''
    product = torch.ops.standing_in.product
    x, residual = reduce(product(x, square)), None
    for layer in range(layers):
        if with_ops:
            ops.reach(x, str(layer))
        if residual is None:
            residual, normed = x, vllm.ir.ops.rms_norm(x, gamma, EPSILON)
        else:
            normed, residual = vllm.ir.ops.fused_add_rms_norm(x, residual, gamma, EPSILON)
        if with_ops:
            ops.wait(normed, f"{layer}.qkv_proj")
        heads = product(quantised(normed, scale), square)
        if with_ops:
            ops.wait(heads, f"{layer}.o_proj")
        x = reduce(product(heads, square))
        normed, residual = vllm.ir.ops.fused_add_rms_norm(x, residual, gamma, EPSILON)
        if with_ops:
            ops.wait(normed, f"{layer}.gate_up_proj")
        inner = activated(product(quantised(normed, scale), wide))
        if with_ops:
            ops.wait(inner, f"{layer}.down_proj")
        x = reduce(product(quantised(inner, scale), tall))
    return x + residual

class Found(Exception):
    pass

class Counting(CustomGraphPass):
    def __init__(self, fusion):
        self.fusion = fusion

    def uuid(self):
        return None

    def __call__(self, graph):
        self.fusion(graph)
        matched.append(self.fusion.matched_count)
        raise Found

def compiled(graph, example_inputs):
    if moving:
        moved.append(move_ahead(graph.graph))
        graph.recompile()
    return torch._inductor.compile(graph, example_inputs)

config = VllmConfig(
    compilation_config=CompilationConfig(custom_ops=["none", "+quant_fp8", "+silu_and_mul"])
)
bf16 = torch.bfloat16
given = [
    torch.empty(5, WIDTH, dtype=bf16), torch.empty(1, 1), torch.empty(WIDTH, dtype=bf16),
    torch.empty(WIDTH, WIDTH), torch.empty(WIDTH, 2 * WIDTH), torch.empty(WIDTH, WIDTH),
]
PASSES = {
    "all-reduce and norm": AllReduces,
    "norm and quantisation": RMSNormQuantFusionPass,
    "activation and quantisation": ActivationQuantFusionPass,
}
matched, moved = [], []
with set_current_vllm_config(config), torch.inference_mode():
    counting = Counting(PASSES[which](config))
    for with_ops, moving in ((False, False), (True, False), (True, True)):
        torch._dynamo.reset()
        with torch._inductor.config.patch(
            post_grad_custom_post_pass=counting,
            enable_auto_functionalized_v2=False,  # as vLLM has it
            force_disable_caches=True,
        ):
            try:
                torch.compile(stack, backend=compiled, fullgraph=True)(*given)
            except Exception as error:
                if "Found" not in str(type(error)) + str(error) + str(type(error.__cause__)):
                    raise
result = {"matched": matched, "moved": moved}
"""


@pytest.mark.parametrize(
    ("fusion", "plain", "placed"),
    [
        ("all-reduce and norm", 2 * LAYERS, LAYERS),
        ("norm and quantisation", 2 * LAYERS, 0),
        ("activation and quantisation", LAYERS, 0),
    ],
)
def test_vllms_passes_find_as_much_with_both_ops_as_without(fusion, plain, placed):
    """Where the hooks put them, and nothing moves, they hide what they stand in."""
    found = run_fresh(MATCHED, str(LAYERS), fusion)
    assert found["matched"] == [plain, placed, plain]
    assert found["moved"] == [LAYERS * 4]


STEPS = """
import json, sys
import torch
import vllm.ir.ops
from torch.nn.functional import linear, silu
from vllm_layershard.hosts.graphs.fusions import move_ahead
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.ops import reach, wait

ops._work.update(reach=lambda *given: None, wait=lambda *given: None)

def norm(x):
    return vllm.ir.ops.rms_norm(x, None, 1e-6)

def fused(x, residual):
    return vllm.ir.ops.fused_add_rms_norm(x, residual, None, 1e-6)

def in_a_row(x, w):
    x = linear(x, w)
    reach(x, "1")
    x = norm(x)
    wait(x, "1.qkv_proj")
    return linear(x, w)

def of_a_stage(x, residual):
    reach(x, "1")
    x, residual = fused(x, residual)
    wait(x, "1.qkv_proj")
    return linear(x, residual)

def native_activation(x, w):
    x = linear(x, w)
    x = silu(x[..., :2]) * x[..., 2:]
    wait(x, "1.down_proj")
    return x

def two_products(x, w):
    x = norm(linear(x, w) + linear(x, 2 * w))
    wait(x, "1.qkv_proj")
    return x

def past_a_product(x, w):
    y = norm(linear(x, w))
    x = linear(x, w)
    wait(y, "1.qkv_proj")
    return x + y

def of_a_side_branch(x, w):
    side = linear(x, w)
    x = norm(linear(x, w) * 2)
    y = x + side
    reach(y, "1")
    return y

def other_rows(x, w):
    x = linear(x, w).view(-1, 2)
    reach(x, "1")
    return x

def written_in_place(x, w):
    x, residual = linear(x, w), linear(x, 2 * w)
    torch.ops._C.fused_add_rms_norm(x, residual, None, 1e-6)
    wait(x, "1.qkv_proj")
    return linear(x, w)

def written_into_memory(x, w):
    y, out = linear(x, w), torch.empty(4, 4)
    torch.ops._C.rms_norm(out, y, None, 1e-6)
    wait(out, "1.qkv_proj")
    return linear(out, w)

def through_memory(x, w):
    side, buffer = linear(x, w), torch.empty(4, 4)
    torch.ops._C.rms_norm(buffer, side, None, 1e-6)
    y = linear(buffer, w)
    z = silu(y) * side
    wait(z, "1.down_proj")
    return z

def of_something_else(x, w):
    x, y = linear(x, w), norm(2 * w)
    wait(x, "1.qkv_proj")
    return linear(x, w) + y

def story(graph):
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            target = getattr(node.target, "overloadpacket", node.target)
            name = getattr(target, "__name__", target)
            yield f"{name} {node.args[0]}" if name in ("reach", "wait") else name

def moved(graph, example_inputs):
    found.append([move_ahead(graph.graph), move_ahead(graph.graph), list(story(graph.graph))])
    return lambda *given: [torch.empty(4, 4)]  # nobody asks what the steps make

found = []
steps = torch.compile(globals()[sys.argv[1]], backend=moved, fullgraph=True)
steps(torch.ones(4, 4), torch.ones(4, 4))
(result,) = found
"""


@pytest.mark.parametrize(
    ("steps", "moved", "story"),
    [
        ("in_a_row", 1, ["linear", "reach x", "wait x", "rms_norm", "linear"]),
        (
            "of_a_stage",
            1,
            ["reach l_x_", "wait l_x_", "fused_add_rms_norm", *2 * ["getitem"], "linear"],
        ),
        ("native_activation", 1, ["linear", "wait x", "getitem", "silu", "getitem", "mul"]),
        ("two_products", 1, ["linear", "mul", "linear", "add", "wait add", "rms_norm"]),
        ("past_a_product", 0, ["linear", "rms_norm", "linear", "wait y", "add"]),
        ("of_a_side_branch", 0, ["linear", "linear", "mul", "rms_norm", "add", "reach y"]),
        ("other_rows", 0, ["linear", "view", "reach x"]),
        (
            "written_in_place",
            1,
            ["linear", "mul", "linear", "wait x", "fused_add_rms_norm", "linear"],
        ),
        ("written_into_memory", 1, ["linear", "wait y", "empty", "rms_norm", "linear"]),
        (
            "through_memory",
            1,
            ["linear", "empty", "rms_norm", "linear", "wait y", "silu", "mul"],
        ),
        ("of_something_else", 0, ["linear", "mul", "rms_norm", "wait x", "linear", "add"]),
    ],
)
def test_an_op_moves_no_further_than_what_it_must_stay_behind(steps, moved, story):
    assert run_child(STEPS, steps) == [moved, 0, story]


GIVEN = """
import json, sys
from types import SimpleNamespace
import torch
from torch.nn.functional import linear, silu
from vllm.config import CompilationConfig
from vllm_layershard.hosts.graphs.fusions import _moving_ahead
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.ops import wait

ops._work.update(wait=lambda *given: None)

def steps(x, w):
    x = silu(linear(x, w))
    wait(x, "1.down_proj")
    return linear(x, w)

def story(self, graph, example_inputs):
    found.append([getattr(n.target, "__name__", "wait") for n in graph.graph.nodes if n.args])
    return graph

found = []
config = CompilationConfig(**json.loads(sys.argv[1]))
backend = SimpleNamespace(compilation_config=config)
whole = lambda graph, given: _moving_ahead(story)(backend, graph, given)
torch.compile(steps, backend=whole, fullgraph=True)(torch.ones(4, 4), torch.ones(4, 4))
result = ["silu" in found[0][:2], config.traced_files != set()]
"""
PIECES = ["vllm::unified_attention", "layershard::reach", "layershard::wait"]


@pytest.mark.parametrize(
    ("stated", "stays"),
    [
        ({"splitting_ops": PIECES}, False),
        ({"splitting_ops": []}, True),
        ({"splitting_ops": PIECES[:1]}, True),
        ({"splitting_ops": PIECES, "use_inductor_graph_partition": True}, True),
    ],
)
def test_none_moves_where_inductor_puts_the_whole_graph_in_order(stated, stays):
    assert run_child(GIVEN, json.dumps(stated)) == [stays, True]
