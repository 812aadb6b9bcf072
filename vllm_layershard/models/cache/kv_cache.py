"""AttentionCache: what one attention keeps of each token on one rank, in bytes."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from vllm_layershard.errors import ConfigError, HardwareError, ModelError
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

_NVFP4_BLOCK: Final = 16
"""Elements that share an fp8 scale, two of them to a byte.
Source: vLLM 0.32, utils/torch_utils.py, `nvfp4_kv_cache_full_dim`."""

_INDEXER_SCALE_BLOCK: Final = 128
"""Elements of the indexer's key that share a float32 scale. Source: deepseek_v2.py, `Indexer`."""


class CacheDevice(NamedTuple):
    """What of a device decides the form of a cache: CUDA's major compute capability, or ROCm.

    `step_tokens`: tokens that a server schedules in one step there, unless it is told otherwise.
    """

    capability: int | None = 9
    rocm: bool = False
    step_tokens: int = 8192

    @property
    def is_ascend(self) -> bool:
        """Neither CUDA nor ROCm: vllm-ascend serves it, by rules of its own."""
        return self.capability is None and not self.rocm

    def in_flight(self, stages: int) -> int | None:
        """Tokens that are scheduled and not yet settled, with as many pipeline stages.

        None on Ascend: nobody says what vllm-ascend keeps beside a window.

        Source: vLLM 0.32, config/vllm.py, `max_in_flight_tokens` and `max_concurrent_batches`:
        scheduling is asynchronous unless a server is told otherwise.
        """
        return None if self.is_ascend else (stages + 1) * self.step_tokens

    @property
    def is_blackwell(self) -> bool:
        """Compute capability 10.x; 12.x is another Blackwell."""
        return self.capability == 10

    @property
    def packs_always(self) -> bool:
        """Whether sparse MLA's cache is packed even where nobody asks for eight bits."""
        return self.capability == 12

    @property
    def sparse_forms(self) -> tuple[str, ...]:
        """The caches of sparse MLA that some backend of vLLM takes here.

        Source: vLLM 0.32, `supports_compute_capability` and `supported_kv_cache_dtypes` of
        v1/attention/backends/mla/*sparse*.py.

        Raises:
            HardwareError: none takes sparse MLA on this capability.
        """
        if self.capability not in (None, 9, 10, 12):
            raise HardwareError(
                f"--hardware: no backend of vLLM 0.32 takes this model's sparse MLA on CUDA "
                f"{self.capability}.x; give a device of compute capability 9.x, 10.x or 12.x"
            )
        if self.rocm:
            return ("auto", *WIDE, *FP8)
        if self.is_ascend:  # vllm-ascend 182b75ea84, platform.py: the model's dtype, come what may
            return ("auto", *WIDE)
        wide = () if self.packs_always else WIDE
        return ("auto", *wide, *FP8, "fp8_ds_mla", *(("nvfp4_ds_mla",) * self.is_blackwell))

    @property
    def eight_bit_forms(self) -> tuple[str, ...]:
        """The fp8 caches that attention without an indexer reads here.

        Source: vllm-ascend 182b75e, attention/attention_v1.py and mla_v1.py, which read none.
        """
        return () if self.is_ascend else FP8

    @property
    def has_scales_of_heads(self) -> bool:
        """Whether a backend reads a cache with a scale for each head: FlashAttention 3 or 4.

        Source: vLLM 0.32, v1/attention/backends/fa_utils.py, `get_flash_attn_version`.
        """
        return not self.rocm and self.capability in (None, 9, 10)

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
    """Keys and values of the heads that are on one rank; sizes in elements.

    `int8`: they are integers of eight bits, whatever dtype is asked for. `window`: tokens of a
    sequence that are kept, beside those in flight; None: all.
    """

    heads: int
    key_dim: int
    value_dim: int
    state_bytes: int = 0
    int8: bool = False
    window: int | None = None

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """Source: vLLM 0.32, v1/kv_cache_interface.py, `FullAttentionSpec.page_size_bytes`, and
        v1/attention/backends/flashinfer.py, `customize_spec`, for nvfp4.
        """
        if kv_cache_dtype == "nvfp4" and self._has_nvfp4(device):
            of_a_head = sum(d // 2 + d // _NVFP4_BLOCK for d in (self.key_dim, self.value_dim))
            return self.heads * of_a_head
        eight = FP8 if self.int8 else device.eight_bit_forms
        known = ("auto", *WIDE, *eight, *(("nvfp4",) * self._has_nvfp4(device)))
        element = _element_bytes(kv_cache_dtype, dtype, known)
        return self.heads * (self.key_dim + self.value_dim) * (1 if self.int8 else element)

    def _has_nvfp4(self, device: CacheDevice) -> bool:
        """Source: vLLM 0.32, flashinfer.py, `supports_kv_cache_dtype`, `supports_combination`."""
        sizes = (128, 256, 512) if device.capability in (8, 9, 12) else (64, 128, 256, 512)
        return (
            device.capability in (8, 9, 10, 12)
            and self.key_dim == self.value_dim
            and self.key_dim in sizes
        )


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
        if self.sparse and device.is_ascend:
            return self._ascend_bytes(kv_cache_dtype, dtype, device)
        known = device.sparse_forms if self.sparse else ("auto", *WIDE, *device.eight_bit_forms)
        if self.sparse and not self._can_be_packed:
            known = ("auto", *WIDE)
        per_token = self._packed_bytes(kv_cache_dtype, device)
        if per_token is None or kv_cache_dtype not in known:
            element = _element_bytes(kv_cache_dtype, dtype, known)
            per_token = (self.kv_lora + self.rope) * element
        scales = self.indexer_dim // _INDEXER_SCALE_BLOCK * DTYPE_BYTES["float32"]
        return per_token + self.indexer_dim + scales

    def _ascend_bytes(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """All in the model's dtype, the indexer's key too, whatever wide dtype is asked for.

        Source: vllm-ascend 182b75ea84, worker/model_runner_v1.py, `AscendSFAIndexerCacheSpec`
        (without `enable_sparse_li_c8`, which is off by default); platform.py.
        """
        _element_bytes(kv_cache_dtype, dtype, device.sparse_forms)  # refuses all others
        return (self.kv_lora + self.rope + self.indexer_dim) * DTYPE_BYTES[dtype]

    @property
    def _can_be_packed(self) -> bool:
        return self.sparse and (self.kv_lora, self.rope) == (512, 64)

    def _packed_bytes(self, kv_cache_dtype: str, device: CacheDevice) -> int | None:
        """Bytes of one token in a packed form; None where it is not packed."""
        form = kv_cache_dtype
        if form in FP8 and device.packs(form):
            form = "fp8_ds_mla"
        return _DS_MLA.get(form) if self._can_be_packed else None


class StateCache(NamedTuple):
    """An attention that keeps nothing of a token, but a state of fixed size for each sequence.

    `tensors`: the bytes of each tensor of the state.
    """

    tensors: tuple[int, ...]

    @property
    def state_bytes(self) -> int:
        """Those of all tensors."""
        return sum(self.tensors)

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str, device: CacheDevice) -> int:
        """None."""
        return 0


class StoredCache(NamedTuple):
    """The cache that a checkpoint asks for: its dtype, and the key that says so.

    `by_head`: its scales are those of single heads.
    """

    dtype: str
    place: str
    by_head: bool = False

    def not_served(self) -> ModelError:
        """The error where no attention of the model keeps such a cache on its device."""
        return ModelError(
            f"{self.place}: asks for a cache in {self.dtype}, which vLLM 0.32 has not for this "
            "model's attention on this device; give another --kv-cache-dtype, such as fp8 or "
            "bfloat16"
        )

    def require_readable(self, device: CacheDevice) -> None:
        """Refuse scales that no backend of the device reads, whichever cache is asked for.

        Raises:
            HardwareError: names the key.
        """
        if self.by_head and not device.has_scales_of_heads:
            on = "ROCm" if device.rocm else f"CUDA {device.capability}.x"
            raise HardwareError(
                f"{self.place}: strategy attn_head, scales of single heads: vLLM 0.32 reads them "
                f"on compute capability 9.x and 10.x, not on {on}; give another --hardware"
            )


def means_auto(architecture: str, kv_cache_dtype: str) -> bool:
    """Whether a class takes this dtype for `auto`, whatever its checkpoint asks for.

    Source: vLLM 0.32, model_executor/models/config.py, `DeepseekV32ForCausalLM`.
    """
    return architecture == "DeepseekV32ForCausalLM" and kv_cache_dtype == "bfloat16"


def device_cache_dtype(architecture: str, cache: AttentionCache, device: CacheDevice) -> str | None:
    """What vLLM takes for `auto` on a device whatever the model's dtype is; None: nothing else.

    Source: vLLM 0.32, model_executor/models/config.py, `GlmMoeDsaForCausalLM`;
    layers/attention/mla_attention.py, `_canonicalize_sparse_mla_kv_cache_dtype`.
    """
    if architecture == "GlmMoeDsaForCausalLM" and device.is_blackwell:
        return "fp8_e4m3"
    sparse = isinstance(cache, LatentCache) and cache.sparse
    return "fp8_ds_mla" if sparse and device.packs_always else None


def _element_bytes(kv_cache_dtype: str, dtype: str, known: tuple[str, ...]) -> int:
    """`known`: what this attention takes.

    Raises:
        ConfigError: another dtype.
    """
    if kv_cache_dtype in known:
        if kv_cache_dtype in FP8:
            return 1
        return DTYPE_BYTES[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]
    meant = _SPELLINGS.get(kv_cache_dtype.lower(), kv_cache_dtype.lower())
    said = f"; did you mean {meant}?" if meant in known else ""
    raise ConfigError(
        f"--kv-cache-dtype {kv_cache_dtype!r}: its bytes are not known for this model; "
        f"known are {', '.join(known)}{said}"
    )
