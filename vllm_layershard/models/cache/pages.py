"""How many tokens a server's cache holds: in whole blocks, beside states, and of windows.

Source: vLLM 0.32, platforms/interface.py, `_align_hybrid_block_size`; v1/core/kv_cache_utils.py,
`_get_kv_cache_groups_uniform_page_size`, `get_kv_cache_configs` and `get_kv_cache_capacity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from vllm_layershard.models.cache.kv_cache import FP8, AttentionCache, CacheDevice, LatentCache

_KERNEL_BLOCK: Final = 16
"""Tokens that a kernel's block is a multiple of. Source: v1/attention/backends/flash_attn.py."""

_STATES: Final = 2
"""Pages for states of one sequence in each group, with prefix caching, which is the default.
Source: vLLM 0.32, v1/kv_cache_interface.py, `MambaSpec.max_memory_usage_bytes`."""

ASCEND_BLOCK: Final = 128
"""Tokens of a block there without states, and of a kernel's block.
Source: vllm-ascend 182b75e, utils.py, `refresh_block_size`; attention/attention_v1.py."""


def block_tokens(caches: Iterable[AttentionCache], kv_cache_dtype: str, device: CacheDevice) -> int:
    """Tokens of a block, where no layer keeps a state: what the device's first backends take.

    Source: vLLM 0.32, platforms/interface.py, `_preferred_block_size_for_backends`;
    platforms/cuda.py and rocm.py, `_get_backend_priorities`; `get_supported_kernel_block_sizes` of
    v1/attention/backends/. FlashAttention's MLA of Hopper takes 16 and no eight-bit cache, FlashMLA
    64, FlashInfer's 32, Triton's 16; the indexer of sparse MLA takes 64 on CUDA.
    """
    latent = [cache for cache in caches if isinstance(cache, LatentCache)]
    if device.is_ascend:
        return ASCEND_BLOCK
    if device.rocm or not latent:
        return _KERNEL_BLOCK
    if any(cache.sparse for cache in latent):
        return 64
    if device.is_blackwell:
        return 32
    return 64 if device.capability == 9 and kv_cache_dtype in FP8 else _KERNEL_BLOCK


class LayerCache(NamedTuple):
    """What one attention keeps on one rank: bytes of a token, and of a sequence.

    `window`: tokens of a sequence that it looks back at; None: all. `here`: it is on the rank's
    pipeline stage.
    """

    per_token: int
    state: int = 0
    window: int | None = None
    here: bool = True


class Page(NamedTuple):
    """What one block takes of each layer, where layers keep states: its tokens, and bytes."""

    tokens: int
    bytes: int


class _Group(NamedTuple):
    """Layers that share a list of blocks: those on the stage, and the blocks of a sequence.

    `states`: they keep a state and nothing of a token.
    """

    here: int
    blocks: int
    states: bool


class LayerCaches(NamedTuple):
    """The caches of a whole model, in the order of its layers, and what of them one rank keeps.

    `drafts`: tokens that are drafted for each sequence, a page of states each. `in_flight`: tokens
    that are scheduled and not yet settled, which a layer with a window keeps beside it; None: it
    is not known, and windows are not counted. `block`: tokens of a block where no layer keeps a
    state or has a window that is counted. `page`: where layers keep states; None: vLLM's own.
    """

    layers: tuple[LayerCache, ...]
    drafts: int = 0
    in_flight: int | None = None
    block: int = _KERNEL_BLOCK
    page: Page | None = None

    @property
    def have_windows(self) -> bool:
        """Whether any layer looks back at a window only."""
        return any(layer.window is not None for layer in self.layers)

    @property
    def have_states(self) -> bool:
        """Whether any layer keeps a state of each sequence."""
        return any(layer.state for layer in self.layers)

    def in_sequences(self, longest: int | None) -> bool:
        """Whether a server counts tokens in its longest sequences, as windows and states ask."""
        windows = self.have_windows and self._counts_windows
        return longest is not None and (self.have_states or windows)

    def tokens(self, room: int, longest: int | None) -> int | None:
        """Tokens that `room` bytes hold on the rank, in sequences of the longest that are served.

        All pages are of one size, and layers are grouped so that each group has as many. `longest`
        None: neither what a sequence's states take is counted, nor what its windows spare. None
        where the rank limits no token: it keeps nothing, or the model keeps nothing of any.
        """
        here = [layer for layer in self.layers if layer.here and (layer.per_token or layer.state)]
        if not here or not self._kept:
            return None
        room = max(0, room)
        if longest is not None and self.in_sequences(longest):
            groups = tuple(self._groups(longest))
            blocks = self._blocks(room, groups)
            return int(blocks / sum(group.blocks for group in groups) * longest)
        if not self.have_states:
            blocks = room // (self.block * sum(layer.per_token for layer in here))
            if longest is None:
                return blocks * self.block
            return int(blocks / -(-longest // self.block) * longest)
        tokens = self._page.tokens
        groups = tuple(self._groups(tokens))
        return self._blocks(room, groups) * tokens // sum(not g.states for g in groups)

    @property
    def _counts_windows(self) -> bool:
        """Pages of unequal bytes are grouped in other ways."""
        return self.in_flight is not None and len({layer.per_token for layer in self._kept}) == 1

    @property
    def _kept(self) -> tuple[LayerCache, ...]:
        return tuple(layer for layer in self.layers if layer.per_token)

    @property
    def _page(self) -> Page:
        """Its block covers the state of a layer that keeps one."""
        if self.page is not None:
            return self.page
        state = max(layer.state for layer in self.layers)
        most = max(layer.per_token for layer in self._kept)
        tokens = _KERNEL_BLOCK * max(1, -(-state // (_KERNEL_BLOCK * most)))
        return Page(tokens, tokens * most)

    def _blocks(self, room: int, groups: tuple[_Group, ...]) -> int:
        """The stage's part of the widest group is what one block takes."""
        return room // (max(group.here for group in groups) * self._page.bytes)

    def _groups(self, longest: int) -> Iterator[_Group]:
        """Layers of one kind, divided so that groups of all kinds have about as many.

        Tokens of other bytes are another kind, as are eight-bit ones beside a draft layer's.
        """
        block = self._page.tokens
        kinds: dict[tuple[int, int | None], list[LayerCache]] = {}
        for layer in self.layers:
            window = layer.window if self._counts_windows else None
            if layer.per_token or layer.state:
                kinds.setdefault((layer.per_token, window), []).append(layer)
        counts = [len(layers) for layers in kinds.values()]
        size = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
        for (per_token, window), layers in kinds.items():
            number = -(-len(layers) // size)
            blocks = -(-longest // block)
            if not per_token:
                blocks = _STATES + self.drafts
            elif window is not None:
                assert self.in_flight is not None, "else no window is counted"
                kept = min(window - 1 + self.in_flight, longest)
                blocks = -(-kept // block) + 1  # it may begin within a block
            for first in range(number):
                here = sum(layer.here for layer in layers[first::number])
                yield _Group(here, blocks, states=not per_token)
