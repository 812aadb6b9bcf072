"""Reloads in one process: two ranks on threads, whose board stands in for the node's."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from forged import forged
from reloads.in_process import RANKS, Alone, Places, together
from vllm_layershard.errors import HostError, LayerShardError, ReloadError, TransportError
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.reload.board import Board
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Stay

LAYERS = 4
PATIENCE_S = 0.3
CPU = CpuDevice(torch.device("cpu"))


class Rank:
    """One rank with a series of which every layer stays."""

    def __init__(self, rank: int, shown: dict[int, Any]) -> None:
        series = [Series("o_proj", tuple(range(LAYERS)), 64)]
        (plan,) = build_plan(series, 2, 1, "replicated").series
        loading = LoadingSeries(plan, Alone(rank), CPU, Stay("pull"))
        for position in range(LAYERS):
            loading.adopt(position, linear(0.0), ("weight",))
        self.series = loading.finish(plan)
        self.reloads = Reloads(Act(Places(rank, shown), PATIENCE_S), [self.series], CPU)

    def reload(
        self,
        value: float,
        fails_at: int | None = None,
        layers: range = range(LAYERS),
        checkpoint: Callable[[], Any] = lambda: "the same",
        error: type[BaseException] = OSError,
    ) -> None:
        with self.reloads.reloading(checkpoint):
            for position in layers:
                if position == fails_at:
                    raise error("unexpected end of file\n(model-00002.safetensors)")
                self.series.reload(position, linear(value))


def linear(value: float) -> torch.nn.Linear:
    module = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


def forward(series: ShardedSeries) -> list[float]:
    """What each layer reads."""
    read = []
    for position in range(LAYERS):
        series.reach(position)
        series.wait(position)
        read.append(float(series.weights(position)["weight"][0, 0]))
    return read


@pytest.fixture
def ranks() -> list[Rank]:
    shown: dict[int, Any] = {}
    return [Rank(rank, shown) for rank in RANKS]


def both(ranks: list[Rank], *args: Any, **kwargs: Any) -> list[BaseException | None]:
    return together(*(lambda rank=rank: rank.reload(*args, **kwargs) for rank in ranks))


def served(ranks: list[Rank]) -> list[list[float]]:
    return [forward(rank.series) for rank in ranks]


@pytest.mark.parametrize("fails_at", range(LAYERS))
@pytest.mark.parametrize("failing", RANKS)
def test_a_reload_that_fails_half_way_breaks_all_until_one_succeeds(ranks, failing, fails_at):
    assert both(ranks, 1.0) == [None, None]
    assert served(ranks) == [[1.0] * LAYERS] * 2
    works = [lambda: ranks[0].reload(2.0), lambda: ranks[1].reload(2.0)]
    works[failing] = lambda: ranks[failing].reload(2.0, fails_at)
    raised = together(*works)
    assert isinstance(raised[failing], OSError)
    assert isinstance(raised[1 - failing], TransportError)
    for rank in ranks:
        for _ in range(2):
            said = (
                r"rank \d: a reload of the weights failed half-way.*unexpected end of file "
                r"\(model-00002.safetensors\).*reload every weight, on all ranks"
            )
            with pytest.raises(TransportError, match=said):
                forward(rank.series)
    assert both(ranks, 3.0) == [None, None]
    assert served(ranks) == [[3.0] * LAYERS] * 2


def test_a_rank_that_does_not_come_keeps_all_from_beginning(ranks):
    for rank in ranks:
        with pytest.raises(ReloadError, match=r"rank \d did not come within 0.3 s.* at once"):
            rank.reload(1.0)
    assert served(ranks) == [[0.0] * LAYERS] * 2
    assert both(ranks, 2.0) == [None, None], "attempts of before bind nobody"
    assert served(ranks) == [[2.0] * LAYERS] * 2


def test_a_checkpoint_that_is_not_whole_keeps_all_from_beginning(ranks):
    def cut() -> None:
        raise HostError("model-00002.safetensors: is cut short")

    works = [lambda: ranks[0].reload(1.0), lambda: ranks[1].reload(1.0, checkpoint=cut)]
    for error in together(*works):
        assert isinstance(error, ReloadError)
        assert "rank 1: HostError: model-00002.safetensors: is cut short" in str(error)
    assert served(ranks) == [[0.0] * LAYERS] * 2


def test_ranks_with_different_checkpoints_do_not_begin(ranks):
    works = [
        lambda: ranks[0].reload(1.0, checkpoint=lambda: {"a.safetensors": [8, "x"]}),
        lambda: ranks[1].reload(1.0, checkpoint=lambda: {"a.safetensors": [8, "y"]}),
    ]
    for error in together(*works):
        assert isinstance(error, ReloadError)
        assert "checkpoint.a.safetensors[1]: 'x' != 'y'" in str(error)
    assert served(ranks) == [[0.0] * LAYERS] * 2


def test_a_broken_model_is_whole_only_when_every_layer_is_of_one_reload(ranks):
    both(ranks, 1.0, fails_at=2)
    for error in both(ranks, 2.0, layers=range(2)):
        assert isinstance(error, TransportError)
        assert "has not brought every sharded weight" in str(error)
    for rank in ranks:
        with pytest.raises(TransportError, match="failed half-way"):
            forward(rank.series)
    assert both(ranks, 3.0) == [None, None]
    assert both(ranks, 4.0, layers=range(2)) == [None, None], "a whole one may be changed in part"
    assert served(ranks) == [[4.0, 4.0, 3.0, 3.0]] * 2


def test_a_reload_that_is_interrupted_is_one_that_failed(ranks):
    raised = together(
        lambda: ranks[0].reload(1.0),
        lambda: ranks[1].reload(1.0, fails_at=1, error=KeyboardInterrupt),
    )
    assert isinstance(raised[1], KeyboardInterrupt)
    assert isinstance(raised[0], TransportError)
    for rank in ranks:
        with pytest.raises(TransportError, match="KeyboardInterrupt: unexpected end"):
            rank.series.reach(0)


def test_who_comes_back_after_a_reload_is_sent_away(ranks):
    shown = ranks[0].reloads._act._presence.board._shown
    Rank(1, shown)
    both(ranks, 1.0)
    with pytest.raises(TransportError, match="rank 1: the other ranks were given other weights"):
        Rank(1, shown)


def test_who_comes_back_while_others_reload_is_sent_away(ranks):
    """Also before any of them has brought the first weight, and on either side."""
    shown = ranks[0].reloads._act._presence.board._shown
    said: list[str] = []

    def come_back() -> None:
        for rank in RANKS:
            former = shown[rank]
            with pytest.raises(TransportError, match="were given other weights"):
                Rank(rank, shown)
            shown[rank] = former
            said.append("sent away")

    with_a_look = threading.Barrier(2, action=come_back)

    def reload(rank: Rank) -> None:
        with rank.reloads.reloading(lambda: "the same"):
            with_a_look.wait(10)
            for position in range(LAYERS):
                rank.series.reload(position, linear(1.0))

    assert together(*(lambda rank=rank: reload(rank) for rank in ranks)) == [None, None]
    assert said == ["sent away"] * 2
    assert served(ranks) == [[1.0] * LAYERS] * 2


def test_a_reload_that_was_refused_sends_nobody_away(ranks):
    for rank in ranks:
        with pytest.raises(ReloadError):
            rank.reload(1.0)
    Rank(1, ranks[0].reloads._act._presence.board._shown)


def test_whoever_turns_back_is_not_waited_for(ranks):
    """One is asked alone, gives up, and is asked again with the other: they find each other."""
    with suppress(LayerShardError):
        ranks[1].reload(1.0)
    with suppress(LayerShardError):
        ranks[0].reload(1.0)
    assert both(ranks, 2.0) == [None, None]


def test_ranks_that_are_asked_again_at_once_find_each_other(ranks):
    """The lead may be asked anew before the others have heard what became of the former reload."""

    def often(rank: Rank) -> None:
        def cut() -> None:
            raise HostError("cut short")

        for number in range(1, 6):
            with pytest.raises(ReloadError, match="rank 0: HostError: cut short"):
                rank.reload(9.0, checkpoint=cut)
            with pytest.raises((OSError, TransportError)):
                rank.reload(8.0, fails_at=rank.series.group.group_rank)
            rank.reload(float(number))

    assert together(*(lambda rank=rank: often(rank) for rank in ranks)) == [None, None]
    assert served(ranks) == [[5.0] * LAYERS] * 2


class Clock:
    """Stands still but for those who sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Forger(Board):
    """Shows of the other rank what a rank once showed, with something changed."""

    ranks = RANKS

    def __init__(self, rank: int, documents: list[str], draw: random.Random) -> None:
        self.rank = rank
        self._documents = documents
        self._draw = draw

    def show(self, document: Any) -> None:
        json.dumps(document)

    def read(self, rank: int) -> Any:
        return forged(json.loads(self._draw.choice(self._documents)), self._draw)


def test_forged_documents_end_in_named_errors(ranks, monkeypatch):
    shown: list[str] = []
    show = Places.show

    def noted(self: Places, document: Any) -> None:
        shown.append(json.dumps(document))
        show(self, document)

    monkeypatch.setattr(Places, "show", noted)
    both(ranks, 1.0)
    both(ranks, 2.0, fails_at=1)
    monkeypatch.setattr("vllm_layershard.runtime.reload.presence.time", Clock())
    draw, found = random.Random(1), Counter()
    for number in range(10_000):
        reloads = ranks[number % 2].reloads
        reloads._act = Act(Forger(number % 2, shown, draw), PATIENCE_S)
        try:
            with reloads.reloading(lambda: "the same"):
                pass
        except LayerShardError as error:
            found[type(error).__name__] += 1
        else:
            found["reloaded"] += 1
    assert found["ReloadError"] > 1000
    assert found["reloaded"] == 0, "nobody has taken part"
