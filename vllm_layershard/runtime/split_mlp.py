"""SplitMlp: a dense MLP in parts over the ranks of a group, and the op that a compiler sees of it.

`layershard::ffn(x, order, mlp)` is [n, H] -> [n, H], n the tokens of this rank. What is gathered
within has a size that depends on the other ranks, and no compiler sees it. `order` is declared as
mutated: see [One order for all] in runtime/moves/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from vllm_layershard.errors import MismatchError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.ranks.rows import gather_rows, scatter_sums

_LIBRARY = torch.library.Library("layershard", "FRAGMENT")
_LIBRARY.define("ffn(Tensor x, Tensor(a!) order, str mlp) -> Tensor")

_mlps: dict[str, SplitMlp] = {}


class SplitMlp:
    """One MLP, of which this rank computes a part for the tokens of its whole group.

    `compute` is [m, H] -> [m, H], the sums of this rank's columns. `counts` says how many tokens
    each rank of the group has in this forward, by group rank; the same on all of them. `finish` is
    what is to be done with this rank's rows of the group's sums, in place or not.
    """

    def __init__(
        self,
        name: str,
        group: RankGroup,
        compute: Callable[[torch.Tensor], torch.Tensor],
        counts: Callable[[], Sequence[int]],
        finish: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.name = name
        self.group = group
        self.forwards = 0
        self._compute = compute
        self._counts = counts
        self._finish = finish

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What the whole MLP makes of this rank's rows. Collective over the group.

        Raises:
            MismatchError: this rank has another number of tokens than the ranks have agreed on.
            TransportError: a rank of the group died or hangs.
        """
        counts, mine = tuple(self._counts()), self.group.group_rank
        if len(counts) != self.group.size or counts[mine] != x.shape[0] or x.dim() != 2:
            raise MismatchError(
                f"{FFN_KEY}: rank {self.group.ranks[mine]} has {list(x.shape)[:-1]} tokens for "
                f"{self.name}, and the ranks {list(self.group.ranks)} have agreed on "
                f"{list(counts)}; please report this with the server's arguments"
            )
        self.forwards += 1
        if max(counts) == 0:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        try:
            gathered = gather_rows(x, counts, self.group)
        except RuntimeError as error:
            raise self.group.lost(f"{self.name}: no tokens came", error) from error
        partial = self._compute(gathered)
        try:
            own = scatter_sums(partial, counts, self.group)
        except RuntimeError as error:
            raise self.group.lost(f"{self.name}: no results came", error) from error
        return own if self._finish is None else self._finish(own)


class SplitFfn:
    """All split MLPs of one rank, for its report. `held_bytes` counts the tensors held now."""

    def __init__(
        self, group: RankGroup, mlps: Sequence[SplitMlp], held_bytes: Callable[[], int]
    ) -> None:
        self._group = group
        self._mlps = mlps
        self._held_bytes = held_bytes

    def document(self) -> dict[str, Any]:
        """As plain data; `forwards` are those in which every MLP has run."""
        held = self._held_bytes()
        return {
            "group_ranks": list(self._group.ranks),
            "group_rank": self._group.group_rank,
            "mlps": [mlp.name for mlp in self._mlps],
            "held_bytes": held,
            "saved_bytes": held * (self._group.size - 1),
            "forwards": min((mlp.forwards for mlp in self._mlps), default=0),
        }


def bind_mlps(mlps: Sequence[SplitMlp]) -> None:
    """Bind the op to these MLPs, by name; those of a former model are forgotten."""
    _mlps.clear()
    _mlps.update((mlp.name, mlp) for mlp in mlps)


def _ffn(x: torch.Tensor, order: torch.Tensor, mlp: str) -> torch.Tensor:
    return _mlps[mlp](x)


def ffn(x: torch.Tensor, order: torch.Tensor, mlp: str) -> torch.Tensor:
    """The op where a compiler looks on, else its work: see [The short way] in runtime/ops.py."""
    if is_dynamo_compiling():
        seen: torch.Tensor = torch.ops.layershard.ffn(x, order, mlp)
        return seen
    return _ffn(x, order, mlp)


def _fake(x: torch.Tensor, order: torch.Tensor, mlp: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_LIBRARY.impl("ffn", _ffn, "CompositeExplicitAutograd")
torch.library.register_fake("layershard::ffn", _fake, lib=_LIBRARY)
