"""BytesMoved: what a rank sends or receives for one sharded linear, by each way of moving."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple


class BytesMoved(NamedTuple):
    """A linear of `inner` columns and `rows` rows on each of `ranks` ranks that share it.

    `weight` are the bytes of its weight, `element` those of an activation's element. Tokens are of
    one rank; all ranks have as many.
    """

    ranks: int
    inner: int
    rows: int
    element: int
    weight: int

    def weights_striped(self) -> float:
        """Of a weight in stripes, a rank receives all but its own."""
        return self._others * self.weight / self.ranks

    def owner_computes(self, tokens: int) -> float:
        """At the owner, which receives every other rank's tokens and sends their results."""
        return self._others * self.owner_a_token * tokens

    def by_output(self, tokens: int) -> float:
        """At every rank: all tokens come to it, and its rows' results go back to their ranks."""
        return tokens * self.by_output_a_token

    def by_input(self, tokens: int) -> float:
        """At every rank: its columns of all tokens come to it, and partial sums go back."""
        return tokens * self.by_input_a_token

    @property
    def owner_a_token(self) -> int:
        """Bytes of a token's activations and of its results."""
        return self.element * (self.inner + self.rows)

    @property
    def by_output_a_token(self) -> float:
        """Bytes of an all-gather and of an all-to-all, for each token of a rank."""
        return self.element * self._others * (self.inner + self.rows / self.ranks)

    @property
    def by_input_a_token(self) -> float:
        """Bytes of an all-to-all and of a reduce-scatter, for each token of a rank."""
        return self.element * self._others * (self.inner / self.ranks + self.rows)

    @property
    def equal_owner_tokens(self) -> int:
        """From so many tokens on the owner's traffic is at least that of the whole weight."""
        return ceil(self.weight / (self._others * self.owner_a_token))

    @property
    def equal_output_tokens(self) -> int:
        """From so many tokens on a split of the output moves as much as stripes of the weight."""
        return ceil(self.weights_striped() / self.by_output_a_token)

    @property
    def equal_input_tokens(self) -> int:
        """From so many tokens on a split of the input moves as much as stripes of the weight."""
        return ceil(self.weights_striped() / self.by_input_a_token)

    def gathered_by_owner(self, tokens: int) -> int:
        """Memory of all ranks' tokens and their results, on the rank that computes them."""
        return self.ranks * tokens * self.owner_a_token

    def gathered_by_output(self, tokens: int, part: float) -> int:
        """Memory of all ranks' tokens, of a part of their results, and of the rank's own ones.

        Before the product it has all ranks' tokens twice, where these have other numbers of them.
        """
        made = ceil(part * self.rows)
        product = self.ranks * (self.inner + made) + self.rows
        return self.element * tokens * max(product, 2 * self.ranks * self.inner)

    @property
    def _others(self) -> int:
        return self.ranks - 1
