"""A rank that ends while the others replay whole forwards is named before the next step."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from capturing import CapturingDevice, Graph
from hosted.child import run_child
from reloads.in_process import Alone, Beside
from vllm_layershard.errors import TransportError
from vllm_layershard.hosts.graphs.peers import PATCHES, check_each_step
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.peer_memory import Parts, Sizes
from vllm_layershard.runtime.peer_memory.processes import Peers, _started, address
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Broken, Pull

LAYERS = 5
WRAPS = {patch.symbol: patch.wrap for patch in PATCHES}


class InLockstep(Alone):
    lockstep = True


class DeviceExports(Beside):
    """As device memory is: what rank 1 stores ends with its process, which is watched."""

    def __init__(self, pid: int) -> None:
        owned = range(1, LAYERS, 2)
        super().__init__(0, {1: {position: (torch.ones(1, 1),) for position in owned}})
        self.peers, self.pid = Peers(0), pid

    def open(self, rank: int, handles: Any, expected: Mapping[int, Sizes]) -> Mapping[int, Parts]:
        self.peers.watch(rank, address() | {"pid": self.pid, "started": _started(self.pid)})
        return super().open(rank, handles, expected)

    def check_peers(self) -> None:
        self.peers.check()


@pytest.fixture
def peer():
    process = multiprocessing.get_context("spawn").Process(target=signal.pause)
    process.start()
    yield process
    process.kill()
    process.join()


@pytest.fixture
def series(peer) -> ShardedSeries:
    device, group = CapturingDevice(), InLockstep(0)
    (plan,) = build_plan([Series("o_proj", tuple(range(LAYERS)), 4)], 2, 1).series
    loading = LoadingSeries(plan, group, device, Pull(group, device, DeviceExports(peer.pid), 0))
    for position in range(LAYERS):
        loading.adopt(position, nn.Linear(1, 1, bias=False), ("weight",))
    return loading.finish(plan)


class Runner:
    """A worker or a runner that replays the graph of a whole forward, and calls no module."""

    def __init__(self, model: nn.Module, series: ShardedSeries) -> None:
        self.model, self.graph, self.steps = model, Graph(), []
        self.graph.capture_begin()
        for position in range(LAYERS):
            series.reach(position)
            series.wait(position)
        self.graph.capture_end()

    def get_model(self) -> nn.Module:
        return self.model

    def step(self, *args: Any, **kwargs: Any) -> str:
        self.graph.replay()
        self.steps.append((args, kwargs))
        return "done"


@pytest.mark.parametrize("symbol", WRAPS)
def test_a_peer_that_ends_between_replays_is_named_before_the_next_step(symbol, peer, series):
    model = nn.Linear(1, 1)
    check_each_step(model, [series])
    runner, step = Runner(model, series), WRAPS[symbol](Runner.step)
    forwards = series.counters.forwards
    assert step(runner, "batch", tokens=7) == "done"
    assert runner.steps == [(("batch",), {"tokens": 7})]
    peer.kill()
    peer.join()
    runner.step()  # a replay itself sees nothing
    with pytest.raises(TransportError, match="rank 0: rank 1 has ended"):
        step(runner, "batch")
    assert len(runner.steps) == 2, "nothing is replayed after it"
    assert series.counters.forwards == forwards, "docs/serving.md: replays are not counted"


@pytest.mark.parametrize("symbol", WRAPS)
def test_a_reload_that_failed_ends_the_next_step_also_where_it_is_replayed(symbol, series):
    model = nn.Linear(1, 1)
    check_each_step(model, [series])
    runner, step = Runner(model, series), WRAPS[symbol](Runner.step)
    series.transport = Broken(series.transport, "failed half-way")
    with pytest.raises(TransportError, match="failed half-way"):
        step(runner)
    assert runner.steps == []


@pytest.mark.parametrize("symbol", WRAPS)
def test_a_model_that_is_not_sharded_steps_as_before(symbol, peer, series):
    check_each_step(nn.Linear(1, 1), [series])
    runner = Runner(nn.Linear(1, 1), series)
    peer.kill()
    peer.join()
    assert WRAPS[symbol](Runner.step)(runner, 1, two=2) == "done"
    assert runner.steps == [((1,), {"two": 2})]


INSTALLED = """
import sys
from importlib import import_module
from pathlib import Path
from vllm_layershard.hosts.graphs.peers import PATCHES, check_steps
from vllm_layershard.hosts.patch import is_replaced

folder, kind = Path(sys.argv[1]), sys.argv[2]
for patch in PATCHES:
    if patch.host == "vllm_ascend":  # it cannot be installed beside vLLM for the CPU
        *packages, name = patch.module.split(".")
        where = folder
        for package in packages:
            where /= package
            where.mkdir(exist_ok=True)
            (where / "__init__.py").touch()
        text = f"class {patch.owner}:\\n    def {patch.attribute}(self): pass\\n"
        (where / f"{name}.py").write_text(text)
sys.path.insert(0, str(folder))
before = {name for name in sys.modules if name.startswith("vllm_ascend")}
check_steps(kind)
result = {"imported": sorted(before), "replaced": []}
for patch in PATCHES:
    owner = getattr(import_module(patch.module), patch.owner)
    if is_replaced(vars(owner)[patch.attribute]):
        result["replaced"].append(patch.symbol)
"""


@pytest.mark.parametrize(("kind", "host"), [("cuda", "vllm"), ("npu", "vllm_ascend"), ("cpu", "")])
def test_the_steps_of_the_host_that_has_the_device_are_guarded(tmp_path, kind, host):
    found = run_child(INSTALLED, str(tmp_path), kind)
    expected = [patch.symbol for patch in PATCHES if patch.host == host]
    assert found == {"imported": [], "replaced": expected}
    assert len(expected) == (0 if kind == "cpu" else 3)
