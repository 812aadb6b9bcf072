"""vLLM's fusion passes find on a graph with both ops what they find on one without.

The passes and patterns are vLLM's own. The kernels that they replace, and would put in their place,
are none of the CPU's: their schemas stand in, and Inductor is stopped once a pass has run.
"""

from __future__ import annotations

import pytest

from hosted.child import run_fresh

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
