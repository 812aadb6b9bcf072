"""What is bound to the ops: a model that is built anew leaves nothing of the former behind."""

from __future__ import annotations

import torch

from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Stay
from vllm_layershard.runtime.weights import Weights


class Reached(ShardedSeries):
    """A series that only notes where it was reached."""

    def __init__(self, name: str) -> None:
        (plan,) = build_plan([Series(name, (0, 1), 4)], 2, 1).series
        group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
        stay = Stay("broadcast")
        weights = Weights(plan, group, stay, CpuDevice(torch.device("cpu")))
        super().__init__(plan, group, weights, stay)
        self.reached: list[int] = []

    def reach(self, position: int) -> None:
        self.reached.append(position)


def test_a_second_model_under_the_same_names_never_reaches_the_first():
    first_o, first_q, second_o, other = (Reached(name) for name in ("o", "q", "o", "x"))
    for position in (0, 1):
        ops.bind(f"m.{position}", f"m.{position}.o", ops.Place(first_o, position))
        ops.bind(f"m.{position}", f"m.{position}.q", ops.Place(first_q, position))
    ops.bind("other.0", "other.0.o", ops.Place(other, 0))

    ops.unbind(["m.0", "m.1"])
    ops.bind("m.0", "m.0.o", ops.Place(second_o, 0))
    torch.ops.layershard.reach(torch.zeros(1), "m.0")

    assert (first_o.reached, first_q.reached, second_o.reached) == ([], [], [0])
    assert first_o not in ops.bound_series()
    assert {id(s) for s in ops.bound_series()} >= {id(other), id(second_o)}
    ops.unbind(["m.0", "other.0"])
    assert second_o not in ops.bound_series()
