"""A reload that fails half-way: every later forward says so, until a reload has made up for it."""

from __future__ import annotations

import pytest
import torch

from vllm_layershard.errors import TransportError
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import Group, RankGroup
from vllm_layershard.runtime.reload import reloading
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Stay

LAYERS = 4


class Alone(Group):
    """A rank of replicas; nobody else is there to be asked."""

    lockstep = False
    rejoins = True
    ranks = (0, 1)
    group_rank = 0
    name = "alone"

    def gather(self, value):
        return [value, value]


LOCKSTEP = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]


def loaded(group: Group, placement: str) -> tuple[ShardedSeries, list[torch.nn.Linear]]:
    series = [Series("o_proj", tuple(range(LAYERS)), 64)]
    (plan,) = build_plan(series, 2, 1, placement).series
    loading = LoadingSeries(plan, group, CpuDevice(torch.device("cpu")), Stay("pull"))
    linears = [torch.nn.Linear(4, 4, bias=False) for _ in range(LAYERS)]
    for position, linear in enumerate(linears):
        loading.adopt(position, linear, ("weight",))
    return loading.finish(plan), linears


def reload(series: ShardedSeries, value: float, fails_at: int | None = None) -> None:
    with reloading([series]):
        for position in range(LAYERS):
            if position == fails_at:
                raise OSError("unexpected end of file\n(model-00002.safetensors)")
            new = torch.nn.Linear(4, 4, bias=False)
            torch.nn.init.constant_(new.weight, value)
            series.reload(position, new)


def forward(series: ShardedSeries) -> list[float]:
    """What each layer reads."""
    read = []
    for position in range(LAYERS):
        series.reach(position)
        series.wait(position)
        read.append(float(series.weights(position)["weight"][0, 0]))
    return read


@pytest.mark.parametrize("fails_at", range(LAYERS))
@pytest.mark.parametrize("group", [LOCKSTEP, Alone()], ids=["lockstep", "replicas"])
def test_a_series_that_stays_is_whole_again_after_a_reload_that_succeeds(group, fails_at):
    series, _ = loaded(group, "replicated")
    reload(series, 1.0)
    assert forward(series) == [1.0] * LAYERS
    with pytest.raises(OSError, match="unexpected end"):
        reload(series, 2.0, fails_at)
    for _ in range(2):
        said = (
            r"rank 0: a reload of the weights failed half-way \(OSError: unexpected end of file "
            r"\(model-00002.safetensors\)\): series 'o_proj' .*reload the weights again"
        )
        with pytest.raises(TransportError, match=said):
            forward(series)
    with pytest.raises(OSError, match="unexpected end"):
        reload(series, 3.0, fails_at)
    reload(series, 3.0)
    assert forward(series) == [3.0] * LAYERS


def test_replicas_that_move_their_layers_stay_broken():
    series, _ = loaded(Alone(), "round_robin")
    with pytest.raises(OSError, match="unexpected end"):
        reload(series, 2.0, 0)
    with pytest.raises(TransportError, match=r"rank 0: an earlier reload .* restart all replicas"):
        reload(series, 3.0)
    with pytest.raises(TransportError, match=r"failed half-way .* restart all replicas"):
        series.reach(0)


def test_a_reload_that_is_interrupted_is_one_that_failed():
    series, _ = loaded(LOCKSTEP, "replicated")
    with pytest.raises(KeyboardInterrupt), reloading([series]):
        raise KeyboardInterrupt
    with pytest.raises(TransportError, match="KeyboardInterrupt: no message"):
        series.reach(0)
