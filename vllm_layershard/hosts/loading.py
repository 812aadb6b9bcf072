"""LoadingModel: the linears that are to be sharded, while vLLM loads and processes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.hosts.decision import Decision
from vllm_layershard.hosts.groups import Groups
from vllm_layershard.hosts.linears import describe_linear
from vllm_layershard.hosts.moves.rows import check_rows
from vllm_layershard.hosts.replicas.raw_weight import RawWeights
from vllm_layershard.hosts.sharded_linear import LoadingLinearMethod, check_linear, put_in_front
from vllm_layershard.plan import Linear, Plan, SharedNeed, shared_need
from vllm_layershard.plan.rows import Rows
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.agreement import agree
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import materialise
from vllm_layershard.runtime.transport import transport_of


class LoadedGroup(NamedTuple):
    """The final plan of one group, and this rank's series that obey it, in the plan's order."""

    plan: Plan
    series: tuple[ShardedSeries, ...]


class LoadingModel:
    """Gives memory to the linears that this rank loads, and follows each through its processing.

    `modules` has the linears by prefix. After the last one `on_loaded` is called, once, with the
    groups in the order of `decisions`. A pipeline stage with none of the named linears has loaded
    them at once. `random` weights come from no checkpoint.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        groups: Groups,
        device: Device,
        modules: Mapping[str, nn.Module],
        on_loaded: Callable[[list[LoadedGroup]], None],
        *,
        random: bool = False,
    ) -> None:
        self._decisions = decisions
        self._groups = groups
        self._device = device
        self._modules = modules
        self._on_loaded = on_loaded
        self._raw_weights = RawWeights(device.torch_device, self._telling, random=random)
        self._loading: list[list[LoadingSeries]] = []
        self._to_adopt = sum(
            len(linears) for each in decisions for linears in each.group_plan.linears
        )

    def planned(self) -> dict[tuple[int, ...], list[dict[str, Any]]]:
        """The plans before processing, as documents, by the ranks of the group that obeys them."""
        found: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for decision in self._decisions:
            ranks = self._group_of(decision).ranks
            found.setdefault(ranks, []).append(decision.group_plan.plan.document())
        return found

    def shared_need(self) -> SharedNeed:
        """What this rank will take of its node's shared memory, if it is pulled from on the CPU."""
        return shared_need(
            (decision.group_plan.plan, self._group_of(decision).group_rank)
            for decision in self._decisions
        )

    def _group_of(self, decision: Decision) -> Group:
        plan = decision.group_plan
        return self._groups.of(plan.tp_replicated, plan.tp_copies)

    def begin(self, config: LayerShardConfig) -> None:
        """Give memory to what this rank loads, and wrap the quant methods.

        Raises:
            HostError: a linear's weight is read or made other than through its quant method.
        """
        for decision in self._decisions:
            group, plan = self._group_of(decision), decision.group_plan.plan
            loading = []
            for series_plan, linears in zip(plan.series, decision.group_plan.linears, strict=True):
                name = decision.group_plan.transport_name
                transport = transport_of(series_plan, group, self._device, name, config.slice_bytes)
                series = LoadingSeries(
                    series_plan, group, self._device, transport, verify=config.verify
                )
                for position, linear in enumerate(linears):
                    self._begin_linear(series, position, linear, series_plan.series.rows)
                loading.append(series)
            self._loading.append(loading)
        if self._to_adopt == 0:
            self._finish()

    def _begin_linear(
        self, series: LoadingSeries, position: int, linear: Linear, rows: Rows | None
    ) -> None:
        module = self._modules[linear.prefix]
        check_linear(module)
        if rows is not None:
            check_rows(module, rows)
        if series.loads(position):
            materialise(module, self._device.torch_device)
        method = LoadingLinearMethod(module, series, position, self._adopting)
        if series.passes(position):
            method.raw = self._raw_weights.take(module, method.process_raw)
        put_in_front(module, method)

    @contextmanager
    def _adopting(self) -> Iterator[None]:
        """Count one linear in that is adopted within, or was; after the last, end the loading."""
        with self._telling():
            yield
            self._to_adopt -= 1
            if self._to_adopt == 0:
                self._finish()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell ranks that would wait for this one what is raised within.

        Those in lockstep see its end: what they do together fails.
        """
        try:
            yield
        except Exception as error:
            if not all(self._group_of(decision).lockstep for decision in self._decisions):
                self._groups.leave(error)
            raise

    def _finish(self) -> None:
        """Agree on the final plans, which know the bytes as processed; then hand over."""
        loaded = []
        for decision, loading in zip(self._decisions, self._loading, strict=True):
            plan = decision.group_plan.as_processed(
                [describe_linear(self._modules[x.prefix], x.layer_id) for x in linears]
                for linears in decision.group_plan.linears
            ).plan
            agree(plan, self._group_of(decision))
            pairs = zip(loading, plan.series, strict=True)
            series = tuple(each.finish(series_plan) for each, series_plan in pairs)
            loaded.append(LoadedGroup(plan, series))
        self._on_loaded(loaded)
