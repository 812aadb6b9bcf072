"""Shared experts run within an op that compilers do not look into: waits stand ahead of it."""

from __future__ import annotations

from typing import Any

import torch

from hosted.engines import load, run_engines
from recital import model_path

LAYER = 4
"""The first one with experts."""
NAMES = ["shared_experts.gate_up_proj", "shared_experts.down_proj"]
PIECES = ["vllm::unified_attention_with_output", "layershard::reach", "layershard::wait"]
COUNTS = (3, 5)


class Depth:
    """How deep in the op of the experts a rank is, and what was waited for there and outside."""

    def __init__(self) -> None:
        self.inside = 0
        self.waits: list[tuple[str, int]] = []

    def watch(self, runner: Any, every_series: list[Any]) -> None:
        forward = type(runner)._forward_impl

        def within(module: Any, *given: Any) -> Any:
            self.inside += 1
            try:
                return forward(module, *given)
            finally:
                self.inside -= 1

        type(runner)._forward_impl = within
        for series in every_series:
            series.wait = self._noted(series.name, series.wait)

    def _noted(self, name: str, wait: Any) -> Any:
        def call(position: int) -> None:
            self.waits.append((name, self.inside))
            wait(position)

        return call


def traced(rank: int, config: Any) -> dict[str, Any]:
    """One MoE block, eagerly and traced, and what vLLM cuts its graph into."""
    from vllm.compilation.backends import split_graph
    from vllm.forward_context import set_forward_context

    from vllm_layershard.runtime.ops import bound_series

    model = load(config, lambda model: None)
    mlp = model.get_submodule(f"model.layers.{LAYER}.mlp")
    depth, graphs = Depth(), []
    depth.watch(mlp.experts, bound_series())
    for series in bound_series():  # one block of five runs here: no forward of the model's
        series.on_forward_start = lambda unread: None

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: mlp(x), backend=keep, fullgraph=True)
    draw = torch.Generator().manual_seed(rank)
    x = torch.randn(COUNTS[rank], mlp.shared_experts.down_proj.output_size, generator=draw)
    x = x.bfloat16()
    counts = torch.tensor(COUNTS, dtype=torch.int32)
    said = []
    with (
        torch.inference_mode(),
        set_forward_context(None, config, num_tokens=COUNTS[rank], num_tokens_across_dp=counts),
    ):
        for run in (mlp, compiled):
            torch.ops.layershard.reach(x, f"model.layers.{LAYER}")
            said.append(run(x.clone()))
            for series in bound_series():
                series.drain()
    (graph,) = graphs
    _, pieces = split_graph(graph, PIECES)
    return {
        "equal": torch.equal(*said),
        "waits": depth.waits,
        "pieces": [(piece.is_splitting_graph, ops_of(piece.graph)) for piece in pieces],
        "hooked": [
            name
            for name, module in model.named_modules()
            if module._forward_pre_hooks and name.endswith("mlp")
        ],
    }


def ops_of(graph: torch.fx.GraphModule) -> list[str]:
    """Of ours and of vLLM, in order."""
    names = [str(node.target).removesuffix(".default") for node in graph.graph.nodes]
    return [name for name in names if name.startswith(("layershard.", "vllm."))]


def test_no_wait_is_below_the_op_of_the_experts():
    for placement in ("round_robin", "replicated"):
        found = run_engines(model_path(), {"layers": NAMES, "placement": placement}, traced)
        for seen in found:
            assert not isinstance(seen, str), seen
            assert seen["equal"]
            assert seen["waits"] == 2 * [(name, 0) for name in NAMES]
            waits = [(True, ["layershard.wait", "layershard.wait"])]
            assert [piece for piece in seen["pieces"] if piece[1]] == [
                *waits,
                (False, ["vllm.moe_forward_shared"]),
            ]
            assert seen["hooked"] == [f"model.layers.{layer}.mlp" for layer in range(4, 9)]


def said_of_what_did_not_run(rank: int, config: Any) -> list[str | None]:
    """What the guard says of a first forward in which no linear ran, on a CPU and on CUDA."""
    from vllm.config import CompilationMode

    from vllm_layershard.errors import HostError
    from vllm_layershard.hosts import model as built
    from vllm_layershard.runtime.ops import bound_series

    guard, given = built.guard, []

    def noted(*arguments: Any) -> None:
        given.append(arguments)
        guard(*arguments)

    built.guard = noted
    load(config, lambda model: None)
    (arguments,) = given
    said: list[str | None] = []
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    for device_type in ("cpu", "cuda"):
        config.device_config.device_type = device_type
        guard(*arguments)
        (series,) = bound_series()
        try:
            for _ in range(2):  # the second forward looks at the first
                series.on_forward_start(())
            said.append(None)
        except HostError as error:
            said.append(str(error))
    return said


def test_a_linear_within_the_op_is_seen_to_run_where_the_op_is_not_traced():
    """On CUDA the op hides it from the compiler: what does not run there reads its weight itself.

    On the CPU a compiler looks into the experts, and a linear that runs in the graph is not seen.
    """
    name = "shared_experts.down_proj"
    for said in run_engines(model_path(), {"layers": [name]}, said_of_what_did_not_run):
        on_cpu, on_cuda = said
        assert on_cpu is None
        assert f"model.layers.{LAYER}.mlp.{name}: a forward did not run it" in on_cuda
