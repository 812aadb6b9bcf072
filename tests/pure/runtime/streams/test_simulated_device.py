"""Forwards on a device whose streams run late and in any order that waits and records allow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import pytest
import torch

import npu
from one_gpu.copies import Copies
from one_gpu.stack import WIDTH, ShardedStack
from simulated.deferred import Deferred
from simulated.deletions import Deletion, deletions
from simulated.nccl import Nccl
from simulated.streams import Accelerator, CaptureError, Event, Graph, Order
from vllm_layershard.errors import LayerShardError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Broadcast, Ticket
from vllm_layershard.runtime.transport.under_way import UnderWay

LAYERS = 6
HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Its kernels are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gpu(accelerator: Accelerator) -> StreamDevice:
    """The product's own device for CUDA, on simulated streams."""
    return StreamDevice(HERE, accelerator, "nccl")  # type: ignore[arg-type]


class TwoLinks(Copies):
    """Two side streams take turns, so that two movements may be under way in any order.

    A movement that was started before `end` must be over when the compute stream comes there.
    """

    def __init__(self, devices: Sequence[StreamDevice], source: Sequence[torch.Tensor]) -> None:
        super().__init__(devices[0], source)
        self._links = devices
        self._started = self._ended = 0

    def start(self, position: int, slot: int) -> Ticket:
        self.device = self._links[position // 2 % 2]
        started, streams = self._started, self.device._accelerator

        def copy() -> None:
            if position not in self.stored:
                streams.current_stream().give(lambda: self._check(started))
                (target,) = self.slots.tensors[slot]
                target.copy_(self.source[position])

        return Ticket(self.device, self.device.enqueue(copy, self.ends[slot]))

    def end(self) -> None:
        """Here no movement of before may be left."""
        self._started += 1
        self._links[0]._accelerator.current_stream().give(self._end)

    def _end(self) -> None:
        self._ended += 1

    def _check(self, started: int) -> None:
        assert started == self._ended, "a movement is late"


class Rank(ShardedStack):
    """Rank 0 of two on the simulated device."""

    def __init__(
        self,
        accelerator: Accelerator,
        prefetch_step: int,
        *,
        kind: Callable[[Accelerator], StreamDevice] = gpu,
        two_links: bool = False,
        over_nccl: bool = False,
    ) -> None:
        device, other = kind(accelerator), gpu(accelerator)

        def begin(plan: SeriesPlan, whole: list[torch.Tensor]) -> LoadingSeries:
            if over_nccl:
                order = [ahead for launched in plan.schedule.launches for ahead in launched]
                self.nccl = Nccl(accelerator, whole, order)
                group = RankGroup((0, 1), 0, data=self.nccl, control=None)  # type: ignore[arg-type]
                return LoadingSeries(plan, group, device, Broadcast(group, device))
            group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
            copies = TwoLinks((device, other), whole) if two_links else Copies(device, whole)
            return LoadingSeries(plan, group, device, copies)

        super().__init__(device, LAYERS, prefetch_step, begin)
        self.accelerator = accelerator

    def results(self, forwards: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """What the forwards say once all is done."""
        with torch.inference_mode(), Deferred(self.accelerator):
            said = forwards()
        self.accelerator.synchronize()
        return said

    def change_weights(self) -> None:
        """On the compute stream: others, in the same memory."""
        for position, weight in enumerate(self.whole):
            weight.neg_()
            if self.series.owns(position):
                self.series.resident[position]["weight"].copy_(weight)


def batch(forward: int) -> torch.Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(forward))


Results = list[tuple[torch.Tensor, torch.Tensor]]
"""What forwards have said, each beside what is right."""


def eager(accelerator: Accelerator, step: int) -> Results:
    """Forward after forward, without a pause."""
    stack, batches = Rank(accelerator, step), [batch(i) for i in range(3)]
    said = stack.results(lambda: [stack(x) for x in batches])
    return list(zip(said, map(stack.unsharded, batches), strict=True))


def skipping(accelerator: Accelerator, step: int) -> Results:
    """Every other forward reaches all boundaries and reads no weight, as dummy batches may."""
    stack, batches = Rank(accelerator, step, two_links=True), [batch(i) for i in range(3)]

    def forwards() -> list[torch.Tensor]:
        said = []
        for x in batches:
            for i in range(LAYERS):
                torch.ops.layershard.reach(x, f"gpu.{i}")
            for i, linear in enumerate(stack.linears):
                torch.ops.layershard.reach(x, f"gpu.{i}")
                torch.ops.layershard.wait(x, f"gpu.{i}.linear")
                for _ in range(8):  # a late movement has time to arrive before the linear reads
                    x = x * 1.0
                x = torch.tanh(linear(x))
            said.append(x)
        return said

    return list(zip(stack.results(forwards), map(stack.unsharded, batches), strict=True))


def replayed(accelerator: Accelerator, step: int) -> Results:
    """A forward is captured and replayed, and other weights come between the replays."""
    stack, x = Rank(accelerator, step), batch(0)
    graph, said = captured(stack, x)
    found = []
    for _ in range(3):
        (copy,) = stack.results(lambda: (graph.replay(), [said.clone()])[1])
        found.append((copy, stack.unsharded(x)))
        stack.results(lambda: (stack.change_weights(), [])[1])
    return found


def captured(stack: Rank, x: torch.Tensor) -> tuple[Graph, torch.Tensor]:
    """The graph of a forward, and where its replays leave the result."""
    streams = stack.accelerator
    with torch.inference_mode(), Deferred(streams), streams.capture() as graph:
        said = stack(x)
    return graph, said


def in_pieces(accelerator: Accelerator, step: int) -> Results:
    """Linears are captured, each alone; `reach` and `wait` stand eager between their replays."""
    stack, x = Rank(accelerator, step), batch(0)
    pieces: list[tuple[Graph, torch.Tensor]] = []
    with torch.inference_mode(), Deferred(accelerator):
        value = x
        for linear in stack.linears:
            with accelerator.capture() as graph:
                value = torch.tanh(linear(value))
            pieces.append((graph, value))

    def forward() -> list[torch.Tensor]:
        for i, (graph, _) in enumerate(pieces):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            graph.replay()
        return [pieces[-1][1].clone()]

    return [(stack.results(forward)[0], stack.unsharded(x)) for _ in range(2)]


def reloaded(accelerator: Accelerator, step: int) -> Results:
    """A forward that reads nothing, then a drain, and other weights: nothing may arrive late."""
    stack, x = Rank(accelerator, step, two_links=True), batch(0)

    def forwards() -> list[torch.Tensor]:
        for i in range(LAYERS):
            torch.ops.layershard.reach(x, f"gpu.{i}")
        stack.series.drain()
        assert isinstance(stack.series.transport, TwoLinks)
        stack.series.transport.end()
        stack.change_weights()
        return [stack(x)]

    (said,) = stack.results(forwards)
    return [(said, stack.unsharded(x))]


class TwoSeries:
    """Two series whose movements start at the same boundaries, on one side stream."""

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        self.device = gpu(accelerator)
        self.stacks = [Rank(accelerator, step, kind=lambda _: self.device) for _ in range(2)]
        ops.unbind([f"gpu.{i}" for i in range(LAYERS)])
        for number, stack in enumerate(self.stacks):
            for i in range(LAYERS):
                ops.bind(f"gpu.{i}", f"gpu.{i}.{number}", ops.Place(stack.series, i))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(LAYERS):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            for number, stack in enumerate(self.stacks):
                torch.ops.layershard.wait(x, f"gpu.{i}.{number}")
                x = torch.tanh(stack.linears[i](x))
        return x

    def unsharded(self, x: torch.Tensor) -> torch.Tensor:
        for weights in zip(*(stack.whole for stack in self.stacks), strict=True):
            for weight in weights:
                x = torch.tanh(torch.nn.functional.linear(x, weight))
        return x


def of_two_series(accelerator: Accelerator, step: int) -> Results:
    """Eager forwards, then a captured one that is replayed."""
    both, x = TwoSeries(accelerator, step), batch(0)
    results = both.stacks[0].results
    said = results(lambda: [both(x), both(-x)])
    with torch.inference_mode(), Deferred(accelerator), accelerator.capture() as graph:
        kept = both(x)
    said += [results(lambda: (graph.replay(), [kept.clone()])[1])[0] for _ in range(2)]
    return [(each, both.unsharded(y)) for each, y in zip(said, (x, -x, x, x), strict=True)]


SCENARIOS = (reloaded, skipping, eager, replayed, in_pieces, of_two_series)
STEPS = (0, 1, 2)
ORDERS: list[tuple[Order, int]] = [
    ("compute first", 0),
    ("side first", 0),
    *(("delayed", seed) for seed in range(8)),
]


def faults(scenario: Callable[[Accelerator, int], Results], step: int) -> Iterator[str]:
    """What goes wrong in any order."""
    for order, seed in ORDERS:
        where = f"{scenario.__name__}, step {step}, {order} {seed}"
        try:
            found = scenario(Accelerator(order, seed), step)
        except (CaptureError, LayerShardError, AssertionError) as error:
            yield f"{where}: {type(error).__name__}: {error}"
            continue
        if not all(torch.equal(said, right) for said, right in found):
            yield f"{where}: another result"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_order_that_is_allowed_is_right(
    scenario: Callable[[Accelerator, int], Results], step: int
) -> None:
    assert list(faults(scenario, step)) == []


OWNERS = (StreamDevice, ShardedSeries, UnderWay, Ticket)
ALL = [deletion for owner in OWNERS for deletion in deletions(owner)]


@pytest.mark.parametrize("deletion", ALL, ids=str)
def test_without_any_wait_or_record_some_order_is_wrong(
    deletion: Deletion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion.owner, deletion.method, deletion.without())
    wrong = (fault for scenario in SCENARIOS for step in STEPS for fault in faults(scenario, step))
    assert next(wrong, None) is not None


def test_all_waits_and_records_are_found() -> None:
    """One that is added comes among them by itself; this shows that none was overlooked."""
    assert {str(one) for one in ALL} >= {
        "StreamDevice.enqueue-record_event-0",
        "StreamDevice.enqueue-record_event-1",
        "StreamDevice.enqueue-wait_event-2",
        "StreamDevice.join-wait_event-0",
        "ShardedSeries.wait-wait-0",
        "ShardedSeries.drain-wait-0",
        "UnderWay.start-wait-0",
        "UnderWay.wait-wait-0",
        "Ticket.wait-join-0",
    }


@pytest.mark.parametrize("step", STEPS)
def test_the_side_stream_waits_once_at_a_boundary(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many movements start there, of one series or of two."""
    both, waited = TwoSeries(Accelerator(), step), []
    side = both.device._side
    waiting = side.wait_event
    monkeypatch.setattr(side, "wait_event", lambda event: (waited.append(event), waiting(event)))
    both.stacks[0].results(lambda: [both(batch(0))])
    launches = both.stacks[0].series.plan.schedule.launches
    assert len(waited) == sum(1 for started in launches if started)
    both.device.enqueue(lambda: None)
    both.device.enqueue(lambda: None)
    assert len(waited) == sum(1 for started in launches if started) + 2, "each beyond boundaries"


@pytest.mark.parametrize("over_nccl", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_what_arrives_in_a_slot_is_waited_for_by_its_lasting_event(
    step: int, over_nccl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each slot, recorded anew by each movement: eager, captured, and eager again."""
    stack, x, recorded = Rank(Accelerator(), step, over_nccl=over_nccl), batch(0), []
    side = stack.series.transport.device._side
    recording = side.record_event

    def record(event: Event | None = None) -> Event:
        recorded.append(recording(event))
        return recorded[-1]

    monkeypatch.setattr(side, "record_event", record)
    stack.results(lambda: [stack(x)])
    captured(stack, x)
    stack.results(lambda: [stack(x)])
    assert len(recorded) == 3 * LAYERS
    assert len(set(recorded)) == stack.series.plan.schedule.num_slots


@pytest.mark.parametrize("step", STEPS)
def test_nccl_broadcasts_on_the_side_stream(step: int) -> None:
    """Not on a stream of its own, which both streams would wait for. Eager, and replayed."""
    for order, seed in ORDERS:
        accelerator = Accelerator(order, seed)
        stack, x = Rank(accelerator, step, over_nccl=True), batch(0)
        (said,) = stack.results(lambda: [stack(x)])  # noqa: B023 - called at once
        assert torch.equal(said, stack.unsharded(x))
        graph, said = captured(stack, x)
        for _ in range(2):
            (copy,) = stack.results(lambda: (graph.replay(), [said.clone()])[1])  # noqa: B023
            assert torch.equal(copy, stack.unsharded(x))
            stack.results(lambda: (stack.change_weights(), [])[1])  # noqa: B023
        assert (stack.nccl.sent, stack.nccl.on_own) == (2 * LAYERS, 0)


def test_the_ascend_device_runs_on_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with formats of its own brings its device, whose streams are these."""

    def npu_of(accelerator: Accelerator) -> StreamDevice:
        return npu.stand_in(HERE, accelerator)

    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))  # gone again afterwards
    for order, seed in ORDERS:
        accelerator = Accelerator(order, seed)
        stack, x = Rank(accelerator, 1, kind=npu_of), batch(0)
        (said,) = stack.results(lambda: [stack(x)])  # noqa: B023 - called at once
        assert torch.equal(said, stack.unsharded(x))


def test_a_capture_must_join_its_side_streams() -> None:
    """As cudaStreamEndCapture refuses it."""
    accelerator = Accelerator()
    device = gpu(accelerator)
    with pytest.raises(CaptureError, match="StreamCaptureUnjoined"), accelerator.capture():
        device.enqueue(lambda: accelerator.current_stream().give(lambda: None))
    with accelerator.capture() as graph:
        device.join(device.enqueue(lambda: accelerator.current_stream().give(lambda: None)))
    graph.replay()
    accelerator.synchronize()


def test_a_capture_and_what_is_outside_wait_for_nothing_of_each_other() -> None:
    accelerator = Accelerator()
    device = gpu(accelerator)
    outside = device.enqueue(lambda: None)
    with pytest.raises(CaptureError, match="StreamCaptureIsolation"), accelerator.capture():
        device.join(outside)
    with accelerator.capture():
        inside = device.enqueue(lambda: None)
    with pytest.raises(CaptureError, match="CapturedEvent"):
        device.join(inside)


def test_a_replay_takes_its_turn_on_the_stream() -> None:
    """After what came before it, and before what comes then; each time anew."""
    for order, seed in ORDERS:
        accelerator, said = Accelerator(order, seed), []
        with accelerator.capture() as graph:
            accelerator.current_stream().give(lambda: said.append("graph"))  # noqa: B023
        for turn in range(3):
            accelerator.current_stream().give(lambda turn=turn: said.append(turn))  # noqa: B023
            graph.replay()
        accelerator.synchronize()
        assert said == [0, "graph", 1, "graph", 2, "graph"]
