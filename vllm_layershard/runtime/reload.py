"""A reload of the weights on one rank: whole, or every later forward is an error.

Note [What a reload does]
vLLM reads a checkpoint into a running server (guarded by hosts/reload_guard.py). On every rank it
loads each linear anew, and calls its quant method. ShardedLinearMethod (hosts/sharded_linear.py)
processes the new weight and hands it to ShardedSeries.reload. Weights.reload takes what this rank
stores of it. Its transport (transport/broadcast.py, pull.py) copies that into the memory from which
it serves. Among replicas the exports do (peer_memory/posix.py), into a new piece that is mapped at
the old address; on a GPU or NPU they refuse. The next forward moves the new bytes.

Where a reload fails between two linears a series holds layers of two checkpoints, and nothing in a
forward could tell. Ranks in lockstep move whatever their owners store: a reload that succeeds later
makes them whole again. Replicas count their reloads to find each other's (see the note [Which
versions are retained] in peer_memory/posix.py), and the count of a reload that failed is no longer
the others': they stay broken until they are started again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm_layershard.errors import TransportError
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Broken


@contextmanager
def reloading(every_series: Sequence[ShardedSeries]) -> Iterator[None]:
    """Enter around one reload of all weights of this rank. Not collective.

    Raises:
        TransportError: an earlier reload failed, on a replica; nothing has been touched.
    """
    for series in every_series:
        if isinstance(series.transport, Broken) and not _heals(series):
            raise TransportError(
                f"{_rank_of(series)}: an earlier reload of its weights failed half-way, and the "
                "other replicas can no longer tell its reloads apart; restart all replicas on the "
                "new weights"
            )
    try:
        yield
    except BaseException as error:
        for series in every_series:
            _break(series, error)
        raise
    for series in every_series:
        if isinstance(series.transport, Broken):
            series.transport = series.transport.former


def _break(series: ShardedSeries, error: BaseException) -> None:
    if isinstance(series.transport, Broken):
        return
    said = " ".join(str(error).split()) or "no message"
    remedy = (
        "reload the weights again, on all ranks"
        if _heals(series)
        else "restart all replicas on the new weights"
    )
    series.transport = Broken(
        series.transport,
        f"{_rank_of(series)}: a reload of the weights failed half-way ({type(error).__name__}: "
        f"{said}): series {series.name!r} may hold layers of two checkpoints; {remedy}",
    )


def _heals(series: ShardedSeries) -> bool:
    """Whether a reload that succeeds makes up for one that failed."""
    return series.group.lockstep or not series.plan.moves


def _rank_of(series: ShardedSeries) -> str:
    return f"rank {series.group.ranks[series.group.group_rank]}"
