"""Reloads: other weights for a loaded model, in one act of all ranks that share.

Note [What a reload does]
vLLM reads a checkpoint into a running server; hosts/reload/guard.py stands around that on each
rank. First all ranks get ready: none of them is in a forward then, and so none reads what another
stores. Each has looked at its checkpoint, and they compare what they saw. Only when all are ready
does any of them begin: see the note [All or none] in act.py.

Each rank then loads each linear anew, and calls its quant method. ShardedLinearMethod
(hosts/sharded_linear.py) processes the new weight and hands it to ShardedSeries.reload.
Weights.reload takes what this rank stores of it, and its transport copies that into the memory from
which it serves. No address changes. At the end the ranks compare fingerprints of what each was
given, and all go on together. The next forward moves the new bytes.

Where a rank fails between, ranks hold layers of two checkpoints, and nothing in a forward could
tell. So every rank that does not hear that all ended well is broken: each of its forwards is an
error, until a reload of every sharded weight has ended well on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm_layershard.errors import LayerShardError, ReloadError, TransportError
from vllm_layershard.plan import differences
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.reload.act import Act, error_text
from vllm_layershard.runtime.reload.order import InDoubt, value_in
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Broken


class Reloads:
    """The reloads of one model on one rank. `act` is of all ranks that share any of its series."""

    def __init__(self, act: Act, every_series: Sequence[ShardedSeries], device: Device) -> None:
        """Takes this rank's place among the others, once it is loaded.

        Raises:
            TransportError: it comes back to ranks that were given other weights meanwhile.
        """
        self._act = act
        self._every_series = {_key(series): series for series in every_series}
        self._device = device
        self._forbidden: Exception | None = None
        self._given: dict[str, dict[str, int]] = {}
        """Fingerprints of what the present reload has brought, by series and position."""
        if act.join():
            raise TransportError(
                f"{self._me}: the other ranks were given other weights since they were started, "
                "and this one has loaded the former ones; restart all ranks of this model together"
            )

    @property
    def _me(self) -> str:
        return f"rank {self._act.rank}"

    def forbid(self, why: Exception) -> None:
        """From now on no rank begins a reload, for this reason of this rank's."""
        self._forbidden = why

    @contextmanager
    def reloading(self, checkpoint: Callable[[], Any]) -> Iterator[None]:
        """Enter around one reload of this rank. All ranks do so; each waits for the others.

        `checkpoint` looks at what is to be loaded, and says in plain data what must be the same on
        all ranks. What it raises keeps all of them from beginning.

        Raises:
            ReloadError: no rank has begun, and nothing has changed.
            TransportError: another rank failed half-way, or may have begun without this one.
        """
        told = self._begin(checkpoint)
        try:
            self._meet(told)
            yield
            self._device.synchronize()
        except BaseException as error:
            self._act.fail(error)
            self._break(f"a reload of the weights failed half-way ({error_text(error)})")
            raise
        try:
            self._act.end(self._given, _other_weights)
        except LayerShardError as error:
            raise self._failed(error) from error
        except BaseException as error:
            self._break(f"a reload of the weights failed half-way ({error_text(error)})")
            raise
        self._heal()

    def _begin(self, checkpoint: Callable[[], Any]) -> list[Any]:
        """What all ranks say as they begin: from then on none of them is in a forward."""
        says: dict[str, Any] = {}
        failed = self._forbidden
        try:
            for series in self._every_series.values():
                series.drain()
            self._device.synchronize()
            every_series = self._every_series.items()
            says["memory"] = {key: series.transport.whereabouts() for key, series in every_series}
            says["checkpoint"] = checkpoint()
        except Exception as error:
            failed = failed or error
        try:
            return self._act.begin(says, failed, _other_checkpoint)
        except InDoubt as error:
            raise self._failed(error) from error
        except LayerShardError as error:
            raise ReloadError(
                f"{self._me}: no rank has reloaded its weights, and all go on with those that they "
                f"have: {error}; ask all ranks to reload at once, while no request runs"
            ) from (failed or error)
        except BaseException as error:
            self._break(f"a reload of the weights was given up as it began ({error_text(error)})")
            raise

    def _meet(self, told: Sequence[Any]) -> None:
        """See the memory of every rank, also of one that was started again."""
        for key, series in self._every_series.items():
            self._given[key] = {}
            series.on_renewed = partial(self._renewed, key)
            places = [self._act.ranks.index(rank) for rank in series.group.ranks]
            memory = [value_in(told[place], "memory") for place in places]
            series.transport.meet([value_in(each, key) for each in memory])

    def _renewed(self, key: str, position: int, fingerprint: int) -> None:
        self._given[key][str(position)] = fingerprint
        self._act.beat()

    def _failed(self, error: LayerShardError) -> TransportError:
        why = f"a reload of the weights failed half-way: {error}"
        self._break(why)
        return TransportError(self._text(why))

    def _break(self, why: str) -> None:
        for series in self._every_series.values():
            if not isinstance(series.transport, Broken):
                series.transport = Broken(series.transport, self._text(why))

    def _text(self, why: str) -> str:
        return (
            f"{self._me}: {why}: its sharded weights may be of two checkpoints; reload every "
            "weight, on all ranks, or restart them all on the new weights"
        )

    def _heal(self) -> None:
        """All ended well: serve again, if every sharded weight is of this reload.

        Raises:
            TransportError: some are of a reload that failed.
        """
        every_series = self._every_series
        broken = [s for s in every_series.values() if isinstance(s.transport, Broken)]
        short = [k for k, s in every_series.items() if len(self._given[k]) < len(s.plan.series)]
        if broken and short:
            raise TransportError(
                f"{self._me}: an earlier reload failed half-way, and this one has not brought "
                "every sharded weight; reload every weight, on all ranks"
            )
        for series in broken:
            assert isinstance(series.transport, Broken)
            series.transport = series.transport.former


def _key(series: ShardedSeries) -> str:
    """The same on all ranks of its group, and on no other rank."""
    return f"{series.group.name}/{series.name}"


def _other_checkpoint(told: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the ranks may not begin: what differs in the checkpoints that they would load."""
    first, *others = [value_in(one, "checkpoint") for one in told]
    for other in others:
        if other != first:
            where = "; ".join(differences(first, other, "checkpoint")[:5])
            return f"the ranks were not given the same weights to load: {where}"
    return None


def _other_weights(told: Sequence[Mapping[str, Mapping[str, int]]]) -> str | None:
    """Which sharded weights the ranks of a group were not given alike."""
    given: dict[str, Mapping[str, int]] = {}
    for one in told:
        for key, fingerprints in (one if isinstance(one, dict) else {}).items():
            if given.setdefault(key, fingerprints) != fingerprints:
                series = key.rpartition("/")[2]
                return f"the ranks were not given the same weights of series {series!r}"
    return None
