"""How many tokens a server's cache holds where some layers keep a state instead of tokens.

Source: vLLM 0.32, platforms/interface.py, `_align_hybrid_block_size`; v1/core/kv_cache_utils.py,
`_get_kv_cache_groups_uniform_page_size` and `get_kv_cache_capacity`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_KERNEL_BLOCK: Final = 16
"""Tokens that a kernel's block is a multiple of. Source: v1/attention/backends/flash_attn.py."""

_STATES: Final = 2
"""Pages for states of one sequence in each group, with prefix caching, which is the default.
Source: vLLM 0.32, v1/kv_cache_interface.py, `MambaSpec.max_memory_usage_bytes`."""


class LayerCaches(NamedTuple):
    """The caches of some layers on one rank: bytes of a token, and of a sequence, of each layer.

    `drafts`: tokens that are drafted for each sequence, a page of states each.
    """

    per_token: tuple[int, ...]
    states: tuple[int, ...]
    drafts: int = 0

    def tokens(self, room: int, longest: int | None) -> int:
        """Tokens that `room` bytes hold, in sequences of the longest that a server takes.

        Where there are states all pages are of one size, and layers are grouped so that each group
        has as many; `longest` None: a sequence's states are not counted. 0 where no layer keeps
        anything of a token.
        """
        kept = [size for size in self.per_token if size]
        if not kept or room <= 0:
            return 0
        if not self.states:
            return room // sum(kept)
        block = _KERNEL_BLOCK * -(-max(self.states) // (_KERNEL_BLOCK * max(kept)))
        few, many = sorted((len(kept), len(self.states)))
        layers = many if many < 1.5 * few else few
        blocks = room // (layers * block * max(kept))
        token_groups, state_groups = -(-len(kept) // layers), -(-len(self.states) // layers)
        if longest is None:
            return blocks * block // token_groups
        used = token_groups * -(-longest // block) + state_groups * (_STATES + self.drafts)
        return int(blocks / used * longest)
