"""Inductor's scheduler, which can forget that a kernel reads what an op has written.

Note [A forgotten writer]
An op that writes into an argument, as vLLM's oneDNN product and its all-reduce do, gives the buffer
a new name in the scheduler. Whoever reads it later waits for that name. On a CPU a pointwise kernel
whose loops are aligned with another's is analysed anew, and waits for the old name from then on.
So the op may run after its reader, which finds memory that nobody has filled. Other orders of the
graph decide whether it does: those of fused kernels, and the one that takes the least memory.
It is torch's fault alone. Plain vLLM on a CPU has it, too, before each router of DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from vllm.config import CompilationMode
from vllm.logger import init_logger

from vllm_layershard.errors import HostError
from vllm_layershard.hosts.after_import import after_import
from vllm_layershard.hosts.patch import Patch

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


def _remembering_writers(original: Callable[..., None]) -> Callable[..., None]:
    def recompute_size_and_body(self: Any, *args: Any, **kwargs: Any) -> None:
        from torch._inductor.dependencies import StarDep, WeakDep

        added = [dep for dep in self.read_writes.reads if isinstance(dep, (WeakDep, StarDep))]
        original(self, *args, **kwargs)
        found = self.read_writes
        for dep in added:
            found = found.with_read(dep)
        self.set_read_writes(found.rename(self.mutation_renames))

    return recompute_size_and_body


_PATCH = Patch(
    module="torch._inductor.scheduler",
    owner="SchedulerNode",
    attribute="recompute_size_and_body",
    versions="2.13",
    reason="torch forgets there which op has written what a CPU kernel reads (pytorch 185509), and "
    "may run the op after the kernel",
    removal="every vLLM that is served comes with a torch that has pytorch 185873",
    wrap=_remembering_writers,
)
PATCHES = (_PATCH,)


def remember_writers(vllm_config: VllmConfig) -> None:
    """In a worker whose model is ours: if it is compiled, ops run before those that read from them.

    Nothing is imported for it: it takes effect once torch imports its compiler. A torch that has
    been mended is left alone.
    """
    if vllm_config.compilation_config.mode != CompilationMode.NONE:
        _watch_for_the_compiler()


@cache
def _watch_for_the_compiler() -> None:
    try:
        _PATCH.require_module()
    except HostError as error:
        _warn(error)
    else:
        after_import(_PATCH.module, _install_where_forgotten)


def _install_where_forgotten() -> None:
    """Where the method is another one, it is warned of: a later torch, which has been mended."""
    try:
        if forgets_writers(_PATCH.original()):
            _PATCH.install()
    except HostError as error:
        _warn(error)


def _warn(error: HostError) -> None:
    logger.warning("The order of a compiled model's ops is torch's own: %s", error)


def forgets_writers(method: Callable[..., None]) -> bool:
    """Whether `SchedulerNode.recompute_size_and_body` loses the name that a written buffer has.

    Raises:
        HostError: it needs another node than torch 2.13 has.
    """
    node = _Node()
    try:
        method(node)
    except (AttributeError, TypeError) as error:
        raise HostError(
            f"{_PATCH.symbol} is not that of torch {_PATCH.versions}: {error}"
        ) from None
    return [dep.name for dep in node.read_writes.reads] != [_WRITTEN]


_FRESH, _WRITTEN = "fresh", "written"
"""One buffer's names: before the op that writes into it, and after."""


def _reading_what_is_written() -> Any:
    """What an analysis finds of a kernel that reads one buffer: it knows no ops."""
    import sympy  # type: ignore[import-untyped]
    from torch._inductor.dependencies import MemoryDep, ReadWrites
    from torch.utils._ordered_set import OrderedSet

    read = MemoryDep(_FRESH, sympy.Integer(0), (), ())
    return ReadWrites(OrderedSet([read]), OrderedSet(), OrderedSet())


@dataclass
class _Node:
    """As much of a node of the scheduler as the method needs."""

    read_writes: Any = field(default_factory=_reading_what_is_written)
    mutation_renames: dict[str, str] = field(default_factory=lambda: {_FRESH: _WRITTEN})

    def _compute_attrs(self, **_: Any) -> None:
        self.read_writes = _reading_what_is_written()

    def set_read_writes(self, found: Any) -> None:
        self.read_writes = found
