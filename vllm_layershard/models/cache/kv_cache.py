"""AttentionCache: what one attention keeps of each token on one rank, in bytes."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from vllm_layershard.errors import ConfigError
from vllm_layershard.models.dtypes import DTYPE_BYTES

FP8: Final = ("fp8", "fp8_e4m3")
WIDE: Final = ("bfloat16", "float16")

_SPELLINGS: Final = {
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("e4m3", "float8", "float8_e4m3", "float8_e4m3fn", "fp8_e4m3fn"), "fp8_e4m3"),
}
"""What elsewhere is written for a dtype -> vLLM's spelling of it, which is in small letters."""

_DS_MLA: Final = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""One token in the packed forms. `fp8_ds_mla`: 512 fp8, four float32 scales, 64 bf16.
Source: vLLM 0.32, layers/attention/mla_attention.py, `get_kv_cache_spec`."""

_INDEXER_SCALE_BLOCK: Final = 128
"""Elements of the indexer's key that share a float32 scale. Source: deepseek_v2.py, `Indexer`."""


class CacheDevice(NamedTuple):
    """What of a device decides the form of a cache: CUDA's major compute capability, or ROCm."""

    capability: int | None = 9
    rocm: bool = False

    @property
    def is_blackwell(self) -> bool:
        """Compute capability 10.x; 12.x is another Blackwell."""
        return self.capability == 10

    @property
    def packs_always(self) -> bool:
        """Whether sparse MLA's cache is packed even where nobody asks for eight bits."""
        return self.capability == 12

    def packs(self, kv_cache_dtype: str) -> bool:
        """Whether sparse MLA packs a token where an eight-bit cache of this name is asked for.

        Every backend takes its own names, and one of them turns `fp8` into the packed form.
        Source: vLLM 0.32, platforms/cuda.py, `_get_backend_priorities`; mla_attention.py,
        `_canonicalize_sparse_mla_kv_cache_dtype`; the backends' `supported_kv_cache_dtypes`.
        """
        if self.rocm or self.is_blackwell:
            return False
        return self.packs_always or kv_cache_dtype == "fp8"


class AttentionCache(Protocol):
    """The cache of one attention on one rank."""

    @property
    def state_bytes(self) -> int:
        """Bytes of each sequence, however long it is."""

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """Bytes of one token; `dtype` is the model's, for `auto`.

        Raises:
            ConfigError: a cache dtype whose bytes are not known for this attention.
        """


class HeadsCache(NamedTuple):
    """Keys and values of the heads that are on one rank; sizes in elements."""

    heads: int
    key_dim: int
    value_dim: int
    state_bytes: int = 0

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """Source: vLLM 0.32, v1/kv_cache_interface.py, `FullAttentionSpec.page_size_bytes`."""
        element = _element_bytes(kv_cache_dtype, dtype, FP8)
        return self.heads * (self.key_dim + self.value_dim) * element


class LatentCache(NamedTuple):
    """MLA: one compressed key-value and one rope key for all heads, whole on every rank.

    `indexer_dim`: elements of the sparse indexer's key; 0 where the layer has none. `sparse`:
    it attends to the tokens that an indexer chooses.
    """

    kv_lora: int
    rope: int
    sparse: bool = False
    indexer_dim: int = 0
    state_bytes: int = 0

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """Source: vLLM 0.32, mla_attention.py and deepseek_v2.py, `get_kv_cache_spec`."""
        per_token = self._packed_bytes(kv_cache_dtype, device)
        if per_token is None:
            fp8 = FP8 if not self.sparse or self._can_be_packed else ()
            element = _element_bytes(kv_cache_dtype, dtype, fp8)
            per_token = (self.kv_lora + self.rope) * element
        scales = self.indexer_dim // _INDEXER_SCALE_BLOCK * DTYPE_BYTES["float32"]
        return per_token + self.indexer_dim + scales

    @property
    def _can_be_packed(self) -> bool:
        return self.sparse and (self.kv_lora, self.rope) == (512, 64)

    def _packed_bytes(self, kv_cache_dtype: str, device: CacheDevice) -> int | None:
        """Bytes of one token in a packed form; None where it is not packed."""
        form = kv_cache_dtype
        if form in FP8 and device.packs(form):
            form = "fp8_ds_mla"
        known = self._can_be_packed and (form != "nvfp4_ds_mla" or device.is_blackwell)
        return _DS_MLA.get(form) if known else None


class StateCache(NamedTuple):
    """An attention that keeps nothing of a token, but a state of fixed size for each sequence."""

    state_bytes: int

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """None."""
        return 0


def device_cache_dtype(architecture: str, cache: AttentionCache, device: CacheDevice) -> str | None:
    """What vLLM takes for `auto` on a device whatever the model's dtype is; None: nothing else.

    Source: vLLM 0.32, model_executor/models/config.py, `GlmMoeDsaForCausalLM`;
    layers/attention/mla_attention.py, `_canonicalize_sparse_mla_kv_cache_dtype`.
    """
    if architecture == "GlmMoeDsaForCausalLM" and device.is_blackwell:
        return "fp8_e4m3"
    sparse = isinstance(cache, LatentCache) and cache.sparse
    return "fp8_ds_mla" if sparse and device.packs_always else None


def _element_bytes(kv_cache_dtype: str, dtype: str, fp8: tuple[str, ...]) -> int:
    if kv_cache_dtype == "auto":
        return DTYPE_BYTES[dtype]
    if kv_cache_dtype in WIDE:
        return DTYPE_BYTES[kv_cache_dtype]
    if kv_cache_dtype in fp8:
        return 1
    known = ("auto", *WIDE, *(fp8 or ("fp8_ds_mla",)))
    meant = _SPELLINGS.get(kv_cache_dtype.lower(), kv_cache_dtype.lower())
    said = f"; did you mean {meant}?" if meant in known else ""
    raise ConfigError(
        f"--kv-cache-dtype {kv_cache_dtype!r}: its bytes are not known for this model; "
        f"known are {', '.join(known)}{said}"
    )
