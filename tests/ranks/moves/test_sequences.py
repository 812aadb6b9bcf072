"""Forwards that move weights and forwards that move tokens, in any order, over real ranks."""

from __future__ import annotations

import pytest

from gloo.moving import play
from gloo.ranks import run_ranks


def check(tmp_path, ranks: int, first: int, count: int) -> None:
    for rank, seen in enumerate(run_ranks(ranks, play, tmp_path, first, count)):
        assert seen.wrong == [], rank
        assert seen.weight_forwards > count / 4
        assert seen.activation_forwards > count / 4
        assert seen.forwards_to_rows > count / 8


@pytest.mark.parametrize("ranks", [2, 3])
def test_twenty_sequences_equal_their_products_in_one_process(tmp_path, ranks):
    check(tmp_path, ranks, 100 * ranks, 20)


@pytest.mark.matrix(part="exchange")
@pytest.mark.parametrize("ranks", [2, 4])
def test_five_hundred_sequences_equal_their_products_in_one_process(tmp_path, ranks):
    check(tmp_path, ranks, 1000 * ranks, 500)
