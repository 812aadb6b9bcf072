"""AttentionCache: what one attention keeps of each token on one rank, in bytes."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from vllm_layershard.errors import ConfigError
from vllm_layershard.models.dtypes import DTYPE_BYTES

FP8: Final = ("fp8", "fp8_e4m3")
WIDE: Final = ("bfloat16", "float16")

_DS_MLA_BYTES: Final = 656
"""One token of `fp8_ds_mla`: 512 fp8, four float32 scales, 64 bf16.
Source: vLLM 0.32, layers/attention/mla_attention.py, `get_kv_cache_spec`."""

_INDEXER_SCALE_BLOCK: Final = 128
"""Elements of the indexer's key that share a float32 scale. Source: deepseek_v2.py, `Indexer`."""


class AttentionCache(Protocol):
    """The cache of one attention on one rank."""

    @property
    def state_bytes(self) -> int:
        """Bytes of each sequence, however long it is."""

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str) -> int:
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

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str) -> int:
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

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str) -> int:
        """Source: vLLM 0.32, mla_attention.py and deepseek_v2.py, `get_kv_cache_spec`."""
        packed = self.sparse and kv_cache_dtype in (*FP8, "fp8_ds_mla")
        if packed and (self.kv_lora, self.rope) == (512, 64):
            per_token = _DS_MLA_BYTES
        else:
            known = () if self.sparse else FP8
            element = _element_bytes(kv_cache_dtype, dtype, known)
            per_token = (self.kv_lora + self.rope) * element
        scales = self.indexer_dim // _INDEXER_SCALE_BLOCK * DTYPE_BYTES["float32"]
        return per_token + self.indexer_dim + scales


class StateCache(NamedTuple):
    """An attention that keeps nothing of a token, but a state of fixed size for each sequence."""

    state_bytes: int

    def bytes_per_token(self, kv_cache_dtype: str, dtype: str) -> int:
        """None."""
        return 0


def _element_bytes(kv_cache_dtype: str, dtype: str, fp8: tuple[str, ...]) -> int:
    if kv_cache_dtype == "auto":
        return DTYPE_BYTES[dtype]
    if kv_cache_dtype in WIDE:
        return DTYPE_BYTES[kv_cache_dtype]
    if kv_cache_dtype in fp8:
        return 1
    known = ", ".join(("auto", *WIDE, *(fp8 or ("fp8_ds_mla",))))
    raise ConfigError(
        f"--kv-cache-dtype {kv_cache_dtype!r}: its bytes are not known for this model; "
        f"known are {known}"
    )
