"""Ranks of a test that crash or hang are told as such, and nobody waits for them for ever."""

from __future__ import annotations

import os
import signal
import time

import pytest

from gloo.ranks import RankError, run_ranks


def ends_badly(rank: int, how: str) -> str:
    if rank == 1 and how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and how == "raise":
        raise ValueError("one")
    if how == "hang":
        time.sleep(3600)
    return how


def test_a_rank_that_crashes_is_told_with_its_exit_code(tmp_path):
    with pytest.raises(RankError, match="rank 1: crashed: exit code -9") as told:
        run_ranks(2, ends_badly, tmp_path, "crash")
    assert told.value.kind == "crashed"


def test_ranks_that_hang_are_ended(tmp_path):
    with pytest.raises(RankError, match="rank 0: hung: it said nothing in time, and was killed"):
        run_ranks(2, ends_badly, tmp_path, "hang", limit_s=5.0)


def test_a_rank_that_raises_is_told_with_its_exception(tmp_path):
    with pytest.raises(RankError, match="rank 1: ValueError: one"):
        run_ranks(2, ends_badly, tmp_path, "raise")
