"""Streams, events and graphs as CUDA has them, of a device that chooses what it does next.

Sources: CUDA C Programming Guide, "Streams", "Events" and "Cross-stream dependencies and events"
in graphs; cudaStreamWaitEvent waits for what the event has recorded when it is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import _disable_current_modes

_DURATIONS = (0.5, 1.0, 1.5, 6.0)
"""Of kernels; a stream is ten times as quick as another, or as slow."""

Order = Literal["compute first", "side first", "delayed"]
"""What runs of all that may run: the oldest stream's task, the youngest one's, or the one that ends
first, where each takes as long as chance has it."""


class CaptureError(RuntimeError):
    """What CUDA refuses of a capture; the message begins with the name of its error."""


class Mark:
    """One recording of an event: past once its stream has come to it."""

    def __init__(self, graph: Graph | None) -> None:
        self.graph = graph
        self.past = False


class Event:
    """Nothing waits for an event that was never recorded."""

    def __init__(self) -> None:
        self.mark: Mark | None = None


class Kernel:
    """Work that a stream does."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work


class Await:
    """A stream goes on once the mark is past."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark


class Pause:
    """A stream goes on once this is so: something that another rank does."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self.until = until


Task = Kernel | Await | Mark | Pause


class Stream:
    """A queue. `accelerator` decides when its tasks run, and forgets it then if it is `brief`."""

    def __init__(self, accelerator: Accelerator, *, brief: bool = False) -> None:
        self.accelerator = accelerator
        self.brief = brief
        self.tasks: deque[Task] = deque()
        self.pace = accelerator.random.choice((0.1, 1.0, 10.0))
        self.ends: float | None = None
        """When its first task ends, once that runs."""
        accelerator.streams.append(self)

    def record_event(self, event: Event | None = None) -> Event:
        """Mark what the stream was given until now."""
        event = Event() if event is None else event
        graph = self._graph()
        event.mark = Mark(graph)
        self._push(event.mark)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what comes later wait for what the event has recorded."""
        mark, graph = event.mark, self._graph()
        if mark is None:
            return
        if mark.graph is None:
            if graph is not None:
                raise CaptureError(
                    "cudaErrorStreamCaptureIsolation: a stream in capture waits for work that is "
                    "not captured"
                )
        elif mark.graph is not self.accelerator.capturing:
            raise CaptureError("cudaErrorCapturedEvent: the event was recorded in a capture")
        else:
            mark.graph.join(self)
        self._push(Await(mark))

    def give(self, work: Callable[[], None]) -> None:
        """Do the work later."""
        self._push(Kernel(work))

    def pause(self, until: Callable[[], bool]) -> None:
        """Go on only once this is so."""
        self._push(Pause(until))

    def _graph(self) -> Graph | None:
        graph = self.accelerator.capturing
        return graph if graph is not None and self in graph.tasks else None

    def _push(self, task: Task) -> None:
        graph = self._graph()
        if graph is None:
            self.tasks.append(task)
            self.accelerator.proceed()
        else:
            graph.tasks[self].append(task)


class Graph:
    """What was captured, stream by stream; replays run it as often as one likes."""

    def __init__(self, origin: Stream) -> None:
        self.tasks: dict[Stream, list[Task]] = {origin: []}
        self._origin = origin

    def join(self, stream: Stream) -> None:
        """The stream has waited for captured work: what it is given now is captured, too."""
        self.tasks.setdefault(stream, [])

    def end(self) -> None:
        """Refuse streams whose last work the origin has not waited for."""
        place = {
            task: (stream, at + 1)
            for stream, tasks in self.tasks.items()
            for at, task in enumerate(tasks)
            if isinstance(task, Mark)
        }
        joined = dict.fromkeys(self.tasks, 0)
        """How many of each stream's tasks the origin waits for."""
        reached = [(self._origin, len(self.tasks[self._origin]))]
        while reached:
            stream, count = reached.pop()
            news = self.tasks[stream][joined[stream] : count]
            joined[stream] = max(joined[stream], count)
            reached += [place[task.mark] for task in news if isinstance(task, Await)]
        for stream, tasks in self.tasks.items():
            if any(isinstance(task, Kernel) for task in tasks[joined[stream] :]):
                raise CaptureError(
                    "cudaErrorStreamCaptureUnjoined: a stream has captured work that the capture's "
                    "own stream does not wait for"
                )

    def replay(self) -> None:
        """On the current stream: after what it was given before, and before what comes then."""
        accelerator = self._origin.accelerator
        here = accelerator.current_stream()
        start = here.record_event()
        marks = {
            task: Mark(None)
            for tasks in self.tasks.values()
            for task in tasks
            if isinstance(task, Mark)
        }
        ends = []
        for tasks in self.tasks.values():
            branch = Stream(accelerator, brief=True)
            branch.wait_event(start)
            for task in tasks:
                if isinstance(task, Kernel | Pause):
                    branch.tasks.append(task)
                elif isinstance(task, Await):
                    branch.tasks.append(Await(marks[task.mark]))
                else:
                    branch.tasks.append(marks[task])
            ends.append(branch.record_event())
        for end in ends:
            here.wait_event(end)


class Accelerator:
    """Stands in the place of `torch.cuda` or `torch.npu`. It runs what it was given when it likes.

    At the latest `synchronize` runs all of it. With the order "delayed" some of it runs after every
    task that it is given, as chance has it; else nothing before it must.
    """

    def __init__(self, order: Order = "delayed", seed: int = 0) -> None:
        self.random = Random(seed)
        self._order = order
        self._now = 0.0
        self._beside = self.random.choice((0, 1, 8))
        """So many tasks at most end while the host gives one; with none it is far ahead."""
        self.streams: list[Stream] = []
        self.capturing: Graph | None = None
        self._current = Stream(self)

    def Stream(self, device: Any = None, priority: int = 0) -> Stream:
        """A new stream."""
        return Stream(self)

    def Event(self) -> Event:
        """A new event."""
        return Event()

    def current_stream(self, device: Any = None) -> Stream:
        """Where work goes."""
        return self._current

    def is_current_stream_capturing(self) -> bool:
        """Whether that work goes into a graph."""
        return self._current._graph() is not None

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Let work go there."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Keep the work of a new stream, and of those that join it, in a graph instead."""
        assert self.capturing is None, "one capture at a time"
        origin = Stream(self)
        graph = self.capturing = Graph(origin)
        try:
            with self.stream(origin):
                yield graph
            graph.end()
        finally:
            self.capturing = None

    def synchronize(self, device: Any = None) -> None:
        """Run everything."""
        if self.capturing is not None:
            raise CaptureError("cudaErrorStreamCaptureUnsupported: synchronized within a capture")
        while self._step():
            pass
        left = [stream for stream in self.streams if stream.tasks]
        assert not left, "streams wait for each other"
        self.streams = [stream for stream in self.streams if not stream.brief]

    def is_idle(self) -> bool:
        """Whether all that it was given is done."""
        return not any(stream.tasks for stream in self.streams)

    def proceed(self) -> None:
        """After a task: run some, if it likes."""
        if self._order == "delayed":
            for _ in range(self.random.randint(0, self._beside)):
                if not self._step():
                    return

    def _step(self) -> bool:
        """Run one task that may run; False if none may."""
        ready = [stream for stream in self.streams if stream.tasks and _may_run(stream.tasks[0])]
        if not ready:
            return False
        stream = self._next(ready)
        task = stream.tasks.popleft()
        if isinstance(task, Mark):
            task.past = True
        elif isinstance(task, Kernel):
            with _disable_current_modes(), torch.inference_mode():
                task.work()
        return True

    def _next(self, ready: list[Stream]) -> Stream:
        if self._order != "delayed":
            return ready[0 if self._order == "compute first" else -1]
        for stream in ready:
            if stream.ends is None:
                takes = isinstance(stream.tasks[0], Kernel)
                took = stream.pace * self.random.choice(_DURATIONS) if takes else 0.0
                stream.ends = self._now + took
        stream = min(ready, key=_end)
        self._now, stream.ends = _end(stream), None
        return stream


def _end(stream: Stream) -> float:
    assert stream.ends is not None, "its first task runs"
    return stream.ends


def _may_run(task: Task) -> bool:
    if isinstance(task, Pause):
        return task.until()
    return not isinstance(task, Await) or task.mark.past
