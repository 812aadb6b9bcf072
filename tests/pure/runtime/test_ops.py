"""What is bound to the ops, and which way a call of them takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_layershard.plan import Series, build_plan
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.exchange.ops import exchange, gather
from vllm_layershard.runtime.moves.ops import linear
from vllm_layershard.runtime.moves.series import MovingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.split_mlp import ffn
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


TOLD = {
    (12, 8): 12,
    (0, 8): 0,
    (1, 12, 8): 12,  # vLLM's Transformers backend
    (4, 12, 8): None,  # Gemma 3n: four activations of each token
    (12, 4, 8): None,
    (12,): None,
    None: None,
}


@pytest.mark.parametrize("shape", TOLD)
def test_an_activation_tells_the_rows_of_a_forward_only_if_it_has_one_a_token(
    shape: tuple[int, ...] | None,
) -> None:
    series, told = Reached("o"), []

    def agreed(rows: int | None) -> tuple[int, int]:
        told.append(rows)
        return 1, 1

    moving = MovingSeries(series, MoveRule("weights", None), agreed)
    ops.bind("m.0", "m.0.o", ops.Place(series, 0, moving))
    try:
        ops.reach(None if shape is None else torch.zeros(shape), "m.0")
    finally:
        ops.unbind(["m.0"])
    assert told == [TOLD[shape]]


class Dispatched(TorchDispatchMode):
    """Notes which of our ops the dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "layershard":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


NOBODY = "nobody's"
CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reach": lambda x: ops.reach(x, NOBODY),
    "wait": lambda x: ops.wait(x, NOBODY),
    "linear": lambda x: linear(x, None, torch.empty(4, 3), torch.zeros(1), NOBODY),
    "exchange": lambda x: exchange(x, 2, NOBODY),
    "gather": lambda x: gather(x, 8, NOBODY),
    "ffn": lambda x: ffn(x, torch.zeros(1), NOBODY),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_a_compiler_a_call_asks_no_dispatcher(name: str) -> None:
    with Dispatched() as dispatched, pytest.raises(KeyError, match=NOBODY):
        CALLS[name](torch.zeros(4, 2))
    assert dispatched.names == []


@pytest.mark.parametrize("name", CALLS)
def test_a_compiler_sees_the_op_and_nothing_of_what_it_does(name: str) -> None:
    seen: list[str] = []

    def compiled(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return lambda *inputs: (torch.zeros(1),)

    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(lambda x: (CALLS[name](x), x + 1)[1], backend=compiled, fullgraph=True)(
            torch.zeros(4, 2)
        )
    assert [target for target in seen if "layershard" in target] == [f"layershard.{name}"]


def test_a_call_does_what_stands_around_the_work_too() -> None:
    """As vLLM's decorator that ends a graph."""
    series, around = Reached("o"), []
    ops.bind("m.0", "m.0.o", ops.Place(series, 0))
    try:
        ops.run_within(lambda work: lambda *given: (around.append(given), work(*given))[1])
        ops.reach(torch.zeros(4, 2), "m.0")
        ops.reach(None, "m.0")
    finally:
        ops.run_within(lambda work: work)
        ops.unbind(["m.0"])
    assert around == [("m.0", torch.Size([4, 2])), ("m.0", None)]
    assert series.reached == [0, 0]
