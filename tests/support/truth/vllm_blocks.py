"""Run as a script: asks vLLM's own code for the tokens of a cache's block on a device of CUDA.

Input: the directory of a DeepSeek-V3.2 as JSON; output: one JSON object, by the attention's kind,
`major.minor` and the cache dtype that is asked for: tokens, or null where no backend takes it.

The modules of compiled kernels are stood in for, as in vllm_cache_forms.py. Of FlashAttention,
FlashMLA and FlashInfer it is said that they are there.
"""

import json
import sys

import vllm.utils.flashinfer
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.platforms.interface import DeviceCapability, Platform
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.mla import flashinfer_mla_sparse_sm90
from vllm.v1.attention.backends.mla.indexer import DeepseekV32IndexerBackend
from vllm.v1.attention.ops import flashmla

from truth.vllm_cache_forms import CAPABILITIES, Absent, configured, cuda, on_cuda, takes

KINDS = {"heads": (False, False, 128), "latent": (True, False, 576), "sparse": (True, True, 576)}
"""Whether it is MLA, whether it is sparse, and the elements of a head."""
ASKED = ("auto", "bfloat16", "fp8", "fp8_e4m3")


def main() -> None:
    config = configured(json.load(sys.stdin))
    have_kernels()
    found = {}
    with set_current_vllm_config(config):
        for pair in CAPABILITIES:
            with on_cuda(*pair):
                for kind in KINDS:
                    found |= {
                        f"{kind} {pair[0]}.{pair[1]} {asked}": tokens(config, kind, asked, pair)
                        for asked in ASKED
                    }
    print(json.dumps(found))


def have_kernels() -> None:
    """Names that are imported from where kernels are built, and the questions for them."""
    for missing in ("vllm.vllm_flash_attn", "vllm.vllm_flash_attn.flash_attn_interface"):
        built = sys.modules.setdefault(missing, Absent(missing))
        built.is_fa_version_supported = lambda *_: True
    for name in (
        *("flash_attn_varlen_func", "compile_flash_attn_varlen_func_from_specs"),
        *("flash_attn_supports_sinks", "get_scheduler_metadata", "reshape_and_cache_flash"),
    ):
        if not hasattr(fa_utils, name):
            setattr(fa_utils, name, None)
    fa_utils.flash_attn_supports_mla = lambda: True
    flashmla.is_flashmla_dense_supported = lambda: (True, None)
    vllm.utils.flashinfer.has_flashinfer_sparse_mla_sm120 = lambda: True
    flashinfer_mla_sparse_sm90.has_flashinfer_sm90_nope_mla = lambda: True


def tokens(config: VllmConfig, kind: str, asked: str, pair: tuple[int, int]) -> int | None:
    """Those of the first backend which takes such a cache, and the indexer's beside it."""
    first = backend(kind, asked, DeviceCapability(*pair))
    if first is None:
        return None
    beside = [DeepseekV32IndexerBackend] if KINDS[kind][1] else []
    return Platform._preferred_block_size_for_backends([first, *beside], 16, config)


def backend(kind: str, asked: str, capability: DeviceCapability) -> type[AttentionBackend] | None:
    mla, sparse, size = KINDS[kind]
    for one in cuda()._get_backend_priorities(mla, capability, 128, asked, False, size):
        if one.name == "TOKENSPEED_MLA" or (sparse and "SPARSE" not in one.name):
            continue  # a package that vLLM does not bring; no backend without the word is sparse
        found = one.get_class()
        if takes(found, asked, capability, size, mla=mla, sparse=sparse):
            return found
    return None


if __name__ == "__main__":
    main()
