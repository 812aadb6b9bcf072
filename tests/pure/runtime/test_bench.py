"""What counts of several passes over a machine that is disturbed now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from vllm_layershard.measure.bench import Bench, effort_for, run


class Disturbed(Bench):
    """A bench whose times are given; it has no ranks."""

    def __init__(self, times: Iterator[float], shares: Iterator[tuple[float, float]]) -> None:
        super().__init__(torch.device("cpu"), effort_for("cpu", quick=True))
        self._times, self._shares = times, shares

    def alone(self, piece: Callable[[], None]) -> float:
        return next(self._times)

    def broadcast(self, nbytes: int) -> float:
        return next(self._times)

    def together(self, *_: object) -> tuple[float, float]:
        return next(self._shares)


def test_the_least_disturbed_counts_and_a_larger_message_takes_no_less_time() -> None:
    passes = (
        (5.0, 6.0, 7.0, (1.0, 2.0, 4.0, 3.0, 8.0, 9.0, 10.0, 11.0)),
        (4.0, 9.0, 9.0, (2.0, 2.5, 5.0, 9.0, 7.0, 9.0, 9.5, 12.0)),
        (6.0, 8.0, 6.5, (3.0, 2.5, 5.0, 9.0, 9.0, 9.0, 10.0, 10.5)),
    )
    times = iter([time for *alone, broadcasts in passes for time in (*alone, *broadcasts)])
    shares = iter([(0.2, 0.5), (0.9, 0.0), (0.1, 0.5), (0.8, 0.2), (0.5, 0.0), (0.0, 1.0)])
    measured = run(Disturbed(times, shares), rank=1)
    assert (measured.product_s, measured.copy_s, measured.narrow_product_s) == (4.0, 6.0, 6.5)
    assert measured.broadcast_s == (1.0, 2.0, 3.0, 3.0, 7.0, 9.0, 9.5, 10.5)
    assert (measured.product_beside, measured.copy_beside) == ((0.5, 0.0), (0.9, 0.0))
