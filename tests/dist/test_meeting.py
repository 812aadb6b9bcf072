"""Ranks that shard differently, or not at all, learn of it in bounded time, on every rank."""

from __future__ import annotations

import time

import torch.distributed as dist

from dist.ranks import run_ranks
from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.meeting import meet

SOON_S = 3.0


def say(rank: int, meetings: list[list[dict | None]]) -> list[str]:
    """What this rank hears in each meeting, when each says its word; None stays away."""
    store = dist.distributed_c10d._get_default_store()
    return [hear(rank, words, store) for words in meetings]


def hear(rank: int, words: list[dict | None], store: dist.Store) -> str:
    word = words[rank]
    if word is None:
        time.sleep(SOON_S + 2)
        return "away"
    started = time.monotonic()
    try:
        meet(word, store, rank, len(words), SOON_S)
    except MismatchError as error:
        assert time.monotonic() - started < SOON_S + 5
        return str(error)
    return "agreed"


WORD = {"versions": {"vllm-layershard": "0.1.0"}, "layer_sharding": {"layers": ["o_proj"]}}

DIFFERENT = {
    "its.versions.vllm-layershard: '0.1.0' != '0.2.0'": {"versions": {"vllm-layershard": "0.2.0"}},
    "'o_proj' != 'q_b_proj'": {"layer_sharding": {"layers": ["q_b_proj"]}},
    "!= ['o_proj', 'q_b_proj']": {"layer_sharding": {"layers": ["o_proj", "q_b_proj"]}},
}


def test_another_word_is_one_error_on_every_rank_and_the_same_word_is_none(tmp_path):
    others = [[WORD, WORD, WORD | other] for other in DIFFERENT.values()]
    for first, *between, last in run_ranks(3, say, tmp_path, [[WORD] * 3, *others, [WORD] * 3]):
        assert (first, last) == ("agreed", "agreed")
        for named, heard in zip(DIFFERENT, between, strict=True):
            assert "rank 2 against rank 0: " in heard
            assert named in heard
            assert "rank 1 against" not in heard


def test_who_stays_away_is_named_by_all_others(tmp_path):
    (first,), (away,), (last,) = run_ranks(3, say, tmp_path, [[WORD, None, WORD]])
    assert away == "away"
    for heard, rank in ((first, 0), (last, 2)):
        assert heard.startswith(f"rank {rank}: ranks [1] of 3 have not come to shard their model")
