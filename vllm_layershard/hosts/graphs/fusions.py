"""Where both ops stand in a compiled model: not between what vLLM fuses.

Note [Ahead of a fusion]
vLLM replaces patterns of a traced model by one kernel each: an all-reduce and the norm behind it, a
norm or an activation and the quantisation behind it. An op of ours writes into an activation. Where
a boundary or a linear has put it, it may stand within a pattern, and hides it. So before vLLM cuts
the graph, each op of ours moves ahead of what is right before it and may be part of a pattern. It
takes the activation that this is made of: the result of a product, of attention or of experts.

It moves past nothing that reads the weight of a product, waits or starts. So what ran before it
still does, and ops of ours stay in order. What an op takes must depend on all that it depended on
before: else it moves less far, or not at all. A movement then starts, and is waited for, ahead of
an all-reduce. (Where attention is quantised, the wait of `o_proj` stays between both.)

None moves where the graph is not cut at our ops, in modes without pieces and under Inductor's own
partition. There Inductor puts the whole graph in order, and knows only what depends on what: an
activation may give another its shape or dtype alone, or be written in place, which `_is_behind`
does not tell apart. Pieces keep the graph's order.
Source: vLLM 0.32, compilation/passes/fusion/.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from vllm.config import CompilationMode

from vllm_layershard.hosts.patch import Patch

if TYPE_CHECKING:
    from vllm.config import CompilationConfig, VllmConfig

_OURS = frozenset({"layershard::reach", "layershard::wait"})

_OPS = frozenset(
    {
        "vllm::all_reduce",
        "vllm_ir::rms_norm",
        "vllm_ir::fused_add_rms_norm",
        "_C::shm_allreduce",
        "_C::rms_norm",
        "_C::fused_add_rms_norm",
        "_C::silu_and_mul",
        "_C::gelu_and_mul",
        "_C::gelu_tanh_and_mul",
    }
)
_FUNCTIONS = frozenset(
    {
        *("add", "mul", "sub", "truediv", "pow", "neg", "getitem"),
        *("silu", "gelu", "relu", "sigmoid", "square", "rsqrt", "mean"),
        *("empty", "empty_like", "split", "chunk", "reshape", "_get_data_attr"),
    }
)
_METHODS = frozenset(
    {
        *("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous"),
        *("split", "chunk", "size", "to", "float", "half", "bfloat16", "type_as", "pow", "mean"),
    }
)
"""What patterns are made of, as dispatched ops, functions and methods, and what stands between."""


def move_ahead(graph: fx.Graph) -> int:
    """Move both ops ahead of what vLLM may fuse. Returns how many have moved; again, none does."""
    return sum(_move(node) for node in list(graph.nodes) if _op_name(node) in _OURS)


def _move(op: fx.Node) -> bool:
    """Move one as far as it can. Returns whether it moved."""
    if not isinstance(op.args[0], fx.Node):
        return False
    passed = list(_light_before(op))
    while passed:
        taken = _to_take(op, passed)
        if taken is not None:
            passed[-1].prepend(op)
            op.update_arg(0, taken)
            return True
        passed.pop()
    return False


def _light_before(op: fx.Node) -> Iterator[fx.Node]:
    """The nodes that it may pass, from the one right before it."""
    node = op.prev
    while _is_light(node):
        yield node
        node = node.prev


def _is_light(node: fx.Node) -> bool:
    """Whether it may be part of a pattern, or reads no weight of a product and stands in one."""
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        # What an op returns in parts is no activation before it is taken apart.
        parts = node.args[0]
        return isinstance(parts, fx.Node) and (_is_tensor(parts) or _is_light(parts))
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _op_name(node) in _OPS
    return getattr(node.target, "__name__", None) in _FUNCTIONS


def _to_take(op: fx.Node, passed: list[fx.Node]) -> fx.Node | None:
    """The activation that an op takes ahead of these nodes; None if there is none."""
    before = op.args[0]
    assert isinstance(before, fx.Node), "it was looked at"
    first = passed[-1]
    made_of = _made_of(before, set(passed))
    if made_of == {before}:  # an all-reduce, or a norm, may have written into it
        return before if any(_writes(node, before) for node in passed) else None
    read = {node for each in passed for node in each.all_input_nodes} & made_of
    found = [node for node in read if not _is_given(node) and _is_tensor(node)]
    if not found and _op_name(first.prev) in _OURS:
        found = [node for node in read if node is first.prev.args[0]]
    if not found:
        return None
    taken = max(found)
    if _op_name(op) == "layershard::reach" and _rows(taken) != _rows(before):
        return None
    behind = [taken, *(user for user in taken.users if user < first and _writes(user, taken))]
    return taken if all(_is_behind(behind, node) for node in made_of) else None


def _made_of(node: fx.Node, passed: set[fx.Node]) -> set[fx.Node]:
    """What is ahead of the passed nodes, of all from which these make `node`."""
    found, seen, left = set(), set(), [node]
    while left:
        each = left.pop()
        if each in passed and each not in seen:
            left += _needs(each)
            left += [user for user in each.users if user in passed and _writes(user, each)]
        elif each not in passed:
            found.add(each)
        seen.add(each)
    return found


def _is_behind(nodes: list[fx.Node], node: fx.Node) -> bool:
    """Whether these depend on it, or, of what only looks at a result, on that."""
    if _is_given(node) or _depend(nodes, node):
        return True
    return _is_light(node) and all(_is_behind(nodes, each) for each in _needs(node))


def _depend(nodes: list[fx.Node], on: fx.Node) -> bool:
    seen, left = set(), list(nodes)
    while left:
        each = left.pop()
        if each is on:
            return True
        if each not in seen and on < each:
            seen.add(each)
            left += _needs(each)
    return False


def _needs(node: fx.Node) -> list[fx.Node]:
    """What it reads, and what has written there before it."""
    reads = node.all_input_nodes
    return [
        *reads,
        *(user for read in reads for user in read.users if user < node and _writes(user, read)),
    ]


def _writes(node: fx.Node, tensor: fx.Node) -> bool:
    """Whether the node writes into the tensor."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and node.args[0] is tensor
    if node.target is operator.setitem:
        return node.args[0] is tensor
    schema = _schema(node)
    if schema is None:
        return False
    given = [*zip(schema.arguments, node.args, strict=False)]
    given += [
        (each, node.kwargs[each.name]) for each in schema.arguments if each.name in node.kwargs
    ]
    return any(
        value is tensor and each.alias_info is not None and each.alias_info.is_write
        for each, value in given
    )


def _schema(node: fx.Node) -> Any:
    target = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = getattr(target, target.overloads()[0])
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def _op_name(node: fx.Node) -> str | None:
    """The name of a dispatched op, without that of an overload; None of all else."""
    schema = _schema(node) if node.op == "call_function" else None
    return None if schema is None else str(schema.name)


def _is_given(node: fx.Node) -> bool:
    """Whether the graph is given it: a weight, or what the model is called with."""
    return node.op in ("placeholder", "get_attr")


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), torch.Tensor)


def _rows(node: fx.Node) -> list[str]:
    return [str(size) for size in node.meta["example_value"].shape[:-1]]


def _cuts_at_ours(config: CompilationConfig) -> bool:
    """Whether vLLM cuts the graph at our ops before Inductor sees it."""
    return not config.use_inductor_graph_partition and {*(config.splitting_ops or ())} >= _OURS


def _moving_ahead(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, graph: fx.GraphModule, example_inputs: Any) -> Any:
        # A compiled piece is stored under the contents of the files that have made it.
        self.compilation_config.traced_files.add(__file__)
        if _cuts_at_ours(self.compilation_config) and move_ahead(graph.graph):
            graph.recompile()
        return original(self, graph, example_inputs)

    return __call__


_PATCH = Patch(
    module="vllm.compilation.backends",
    owner="VllmBackend",
    attribute="__call__",
    versions="0.29 to 0.33",
    reason="an op of ours between two that vLLM fuses would hide them from its passes; the graph "
    "must be changed before it is cut into pieces",
    removal="vLLM offers plugins a pass over the whole graph before it is cut",
    wrap=_moving_ahead,
)
PATCHES = (_PATCH,)


def keep_fusions(vllm_config: VllmConfig) -> None:
    """In a worker whose model is sharded: if vLLM compiles it, both ops stay clear of its fusions.

    Nothing is imported for it. torch's own compilers, on the CPU, have no such passes.

    Raises:
        HostError: this version of vLLM lacks the symbol.
    """
    if vllm_config.compilation_config.mode == CompilationMode.VLLM_COMPILE:
        _watch_for_the_backend()


@cache
def _watch_for_the_backend() -> None:
    _PATCH.install_on_import()
