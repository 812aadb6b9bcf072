"""Weights that an attention of vllm-ascend's takes out of their linears are refused by name.

Its attentions are stood in for: they take weights as the source says, once linears are loaded.
"""

from __future__ import annotations

from hosted.child import run_child

STAND_INS = """
import tempfile
from types import SimpleNamespace
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.ascend.taken_weights import check_not_taken

class AscendW8A8LinearMethod: ...
class AscendW8A8DynamicLinearMethod: ...
class AscendW8A8MXFP8DynamicLinearMethod: ...

config = VllmConfig()
with set_current_vllm_config(config), tempfile.TemporaryDirectory() as scratch:
    init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
    initialize_model_parallel()
    at = "model.layers.3.self_attn"
    fused = ReplicatedLinear(16, 12, bias=False, prefix=f"{at}.fused_qkv_a_proj")
    queries = ColumnParallelLinear(8, 24, bias=False, prefix=f"{at}.q_b_proj")
    output = ReplicatedLinear(8, 16, bias=False, prefix=f"{at}.o_proj")
    indexer = ReplicatedLinear(8, 16, bias=False, prefix=f"{at}.indexer.wq_b")
LINEARS = [output, queries, fused, indexer]

class Attention:
    '''As sfa_v1.py and mla_v1.py build one: its linears, and what they say of themselves.'''
    def __init__(self, scheme, **said):
        self.fused_qkv_a_proj, self.q_proj, self.o_proj, self.wq_b = fused, queries, output, indexer
        for linear in LINEARS:
            linear.quant_method = SimpleNamespace()
            if scheme is not None:
                linear.quant_method.quant_method = scheme()
        vars(self).update(said)
    def process_weights_after_loading(self):
        inner = getattr(self.fused_qkv_a_proj.quant_method, "quant_method", None)
        if self.enable_mlapo and type(inner) is AscendW8A8LinearMethod:
            self.wd_qkv = self.fused_qkv_a_proj.weight.data.clone()
            self.wu_q = self.q_proj.weight.data.clone()

def verdicts(scheme, **said):
    '''What is said of each linear alone.'''
    impl = Attention(scheme, **said)
    layers = config.compilation_config.static_forward_context
    layers.update({at: SimpleNamespace(mla_attn=None), f"{at}.attn": SimpleNamespace(impl=impl)})
    found = []
    for linear in LINEARS:
        try:
            check_not_taken(config, [linear])
            found.append(None)
        except HostError as error:
            found.append(str(error))
    return found

STATIC, DYNAMIC = AscendW8A8LinearMethod, AscendW8A8DynamicLinearMethod
MXFP8 = AscendW8A8MXFP8DynamicLinearMethod
"""


def test_mlapo_copies_what_a_slot_holds_when_nothing_has_come_yet() -> None:
    """What the refusal is for: a rank that is not the owner would decode with these."""
    found = run_child(f"""{STAND_INS}
impl = Attention(STATIC, enable_mlapo=True)
slot = torch.zeros_like(queries.weight)
queries.weight.data = slot
impl.process_weights_after_loading()
slot.fill_(1)  # the layer comes
off = Attention(STATIC, enable_mlapo=False)
off.process_weights_after_loading()
result = [impl.wu_q.any().item(), queries.weight.all().item(), hasattr(off, "wu_q")]
""")
    assert found == [False, True, False]


def test_what_mlapo_takes_is_refused_with_the_switch() -> None:
    found = run_child(f"""{STAND_INS}
result = [
    verdicts(STATIC, enable_mlapo=True),
    verdicts(MXFP8, enable_mlapo=True),
    verdicts(STATIC, enable_mlapo=False),
    verdicts(DYNAMIC, enable_mlapo=True),
    verdicts(None, enable_mlapo=True),
    verdicts(None),
]
""")
    said = (
        "layer_sharding: model.layers.3.self_attn.{}: vllm-ascend's MLAPO takes the weight once "
        "all are loaded, when most ranks have none of it, and would decode with that; set "
        '"enable_mlapo": false in --additional-config (before vllm-ascend 0.20 '
        "VLLM_ASCEND_ENABLE_MLAPO=0), or leave it out"
    )
    refused = [None, said.format("q_b_proj"), said.format("fused_qkv_a_proj"), None]
    assert found == [refused, refused, *[[None] * 4] * 4]


def test_so_is_what_an_instance_takes_that_gets_its_cache_from_another() -> None:
    """0.25 and later take Prolog V3 by the scheme, 0.23 and 0.24 by a flag, dense MLA by another.

    A sharded linear shows no scheme: sparse attention would take it for an unquantised one.
    """
    found = run_child(f"""{STAND_INS}
later = dict(preprocess_type="native", is_kv_consumer=True, is_kv_producer=False)
both = later | dict(is_kv_producer=True)
cases = [
    verdicts(None, **later),
    verdicts(MXFP8, **later),
    verdicts(DYNAMIC, enable_sparse_sfa_c8=True, **later),
    verdicts(DYNAMIC, enable_sfa_prolog_v3=True),
    verdicts(DYNAMIC, **later),
    verdicts(STATIC, enable_mlapo=False, **later),
    verdicts(STATIC, fa_quant_layer=True),
    verdicts(None, **both),
    verdicts(DYNAMIC, is_kv_consumer=True),
]
result = [[said and said.partition("'s ")[2].partition(" takes")[0] for said in case]
          for case in cases]
""")
    prolog = "MLA Prolog V3 (where the cache comes from another instance)"
    cache = "attention over an eight-bit cache (fa_quant_type)"
    whole, first = [None, prolog, prolog, prolog], [None, None, prolog, None]
    none = [None] * 4
    assert found == [*[whole] * 4, first, first, [None, cache, cache, None], none, none]


def test_an_npu_on_which_unquantised_ones_are_copied_too() -> None:
    found = run_child(f"""{STAND_INS}
import sys
from types import ModuleType
ascend = ModuleType("vllm_ascend.utils")
sys.modules["vllm_ascend.utils"] = ascend
result = []
for name in ("A3", "A5"):
    ascend.get_ascend_device_type = lambda: SimpleNamespace(name=name)
    result.append([said is not None for said in verdicts(None, enable_mlapo=True)])
""")
    assert found == [[False] * 4, [False, True, True, False]]
