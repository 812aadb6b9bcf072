"""One vLLM model, sharded: find its linears, plan them, and see them through loading.

Note [From construction to the first forward]
Before anything else the ranks compare their configurations, and their plans once the model is
built: a rank that was started otherwise, or not at all, is named instead of waited for. While the
model is built, each matched linear is released to the meta device as soon as its parent takes it
in, so that no rank ever holds more than one of them. Then the plan is made, and the owners' linears
get memory again; vLLM loads the checkpoint, which is a no-op on meta parameters. vLLM then
processes the modules in one order on every rank: a linear's owner broadcasts its loaded parameters,
every rank runs the quant method on them (so that all its Python-side state exists everywhere), and
the large tensors of those that are not the owner become aliases of slots. After the last one the
ranks compare the final plan, which knows the bytes as processed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import vllm
from torch import nn
from vllm.logger import init_logger

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.hosts.boundary import boundary_of, install_boundary
from vllm_layershard.hosts.groups import Groups, form_groups
from vllm_layershard.hosts.identity import identity_of
from vllm_layershard.hosts.linears import (
    check_matched,
    check_untied,
    collecting,
    describe_linear,
    leave_towers,
)
from vllm_layershard.hosts.settings import layout_of
from vllm_layershard.hosts.sharded_linear import check_linear, wrap
from vllm_layershard.plan import GroupPlan, Linear, ParallelLayout, group_plans, select
from vllm_layershard.plan.linear import suffix_of
from vllm_layershard.runtime.device import Device, device_of
from vllm_layershard.runtime.ops import Place, bind, unbind
from vllm_layershard.runtime.ranks.agreement import agree
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import materialise
from vllm_layershard.version import __version__

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


def build(
    config: LayerShardConfig, vllm_config: VllmConfig, construct: Callable[[], nn.Module]
) -> nn.Module:
    """Construct the model and shard the linears that `config` names. Collective over the world.

    Raises:
        PlanError: a name matches nothing, or a series cannot be planned.
        HostError: the model or its quantisation cannot be sharded on this host.
        MismatchError: the ranks were not started alike, or one of them is missing.
    """
    device = device_of(torch.device(vllm_config.device_config.device_type))
    layout = layout_of(vllm_config, config)
    num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    started = {**started_with(config, layout), "num_layers": num_layers}
    if not layout.in_lockstep:
        started["model"] = identity_of(vllm_config)
    groups = form_groups(layout, device.backend, vllm_config, started)
    try:
        with collecting(config, num_layers) as found:
            model = construct()
        leave_towers(model, found, device.torch_device)
        selected = select([linear for linear, _ in found.values()], config.layers)
        check_matched(config, selected, [linear for linear, _ in found.values()], vllm_config)
        modules = {linear.prefix: module for linear, module in found.values()}
        check_untied(model, [modules[x.prefix] for members in selected.values() for x in members])
        sharded = ShardedModel(config, layout, groups, device, model, modules, selected)
    except Exception as error:
        groups.leave(error)
        raise
    groups.compare_plans(sharded.planned)
    return model


def started_with(config: LayerShardConfig, layout: ParallelLayout) -> dict[str, Any]:
    """What must be the same on every rank before one model is built; a path may differ."""
    return {
        "vllm-layershard": __version__,
        "vllm": vllm.__version__,
        KEY: asdict(replace(config, report_dir=None)),
        "layout": asdict(layout),
    }


class Decision(NamedTuple):
    """A plan, and this rank's group of those that obey it."""

    group_plan: GroupPlan
    group: Group


def _alike(linear: Linear, named: list[Linear], layer_id: int) -> Linear:
    """The linear of the same name in another layer."""
    suffix = suffix_of(linear.prefix)
    return next(x for x in named if x.layer_id == layer_id and suffix_of(x.prefix) == suffix)


class ShardedModel:
    """The sharded linears of one model. See the note [From construction to the first forward]."""

    def __init__(
        self,
        config: LayerShardConfig,
        layout: ParallelLayout,
        groups: Groups,
        device: Device,
        model: nn.Module,
        modules: dict[str, nn.Module],
        selected: dict[str, tuple[Linear, ...]],
    ) -> None:
        self._config = config
        self._groups = groups
        self._modules = modules
        stage = layout.stage_of(groups.rank)
        self._decisions = [
            Decision(group_plan, groups.of(group_plan.tp_replicated))
            for group_plan in group_plans(selected, config, layout, stage)
        ]
        self._series: list[ShardedSeries] = []
        self._to_adopt = 0
        paths = {id(module): path for path, module in model.named_modules()}
        boundaries: dict[str, nn.Module] = {}
        unbind({boundary_of(paths[id(m)]) for m in modules.values() if id(m) in paths})
        named = [linear for members in selected.values() for linear in members]
        self.planned: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for group_plan, group in self._decisions:
            plan = group_plan.plan
            self.planned.setdefault(group.ranks, []).append(plan.document())
            for series_plan, linears in zip(plan.series, group_plan.linears, strict=True):
                series = ShardedSeries(
                    series_plan,
                    group,
                    device,
                    movement=layout.movement,
                    slice_bytes=config.slice_bytes,
                    verify=config.verify,
                )
                self._series.append(series)
                for position, linear in enumerate(linears):
                    module = modules[linear.prefix]
                    check_linear(module)
                    if series.loads(position):
                        materialise(module, device.torch_device)
                    elif not series.group.lockstep:  # nobody sends it the small ones
                        large = tuple(tensor.name for tensor in linear.large)
                        materialise(module, device.torch_device, leave=large)
                    stands_at = series_plan.series.boundary(position)
                    path = paths[id(modules[_alike(linear, named, stands_at).prefix])]
                    boundary = boundary_of(path)
                    boundaries[boundary] = model.get_submodule(boundary)
                    place = Place(series, position)
                    bind(boundary, linear.prefix, place)
                    wrap(module, place, self.adopting)
                    self._to_adopt += 1
        placed = {x for each, _ in self._decisions for prefixes in each.prefixes for x in prefixes}
        for linear in named:
            if linear.prefix not in placed:  # a kept one was released with the others
                materialise(modules[linear.prefix], device.torch_device)
        for boundary, layer in boundaries.items():
            install_boundary(layer, boundary)
        if self._to_adopt == 0:  # a pipeline stage with none of the named linears
            self._finish()

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Count one linear in that is adopted within; after the last, begin to serve.

        What is raised is also told to ranks that would wait for this one. Those in lockstep see its
        end: what they do together fails.
        """
        try:
            yield
            self._to_adopt -= 1
            if self._to_adopt == 0:
                self._finish()
        except Exception as error:
            if not all(series.group.lockstep for series in self._series):
                self._groups.leave(error)
            raise

    def _finish(self) -> None:
        """Agree on the final plan, and serve."""
        digests: dict[str, str] = {}
        unfinished = iter(self._series)
        for group_plan, group in self._decisions:
            plan = group_plan.as_processed(
                [describe_linear(self._modules[x.prefix], x.layer_id) for x in linears]
                for linears in group_plan.linears
            ).plan
            agree(plan, group)
            for series_plan in plan.series:
                next(unfinished).finish(series_plan)
                digests[series_plan.series.name] = plan.digest()
        _announce(self._series)
        if self._config.report_dir is not None:
            report = Report(self._config.report_dir, self._groups.rank, self._series, digests)
            report.write()
            for series in self._series:
                series.on_forward_end = report.refresh


def _announce(series: list[ShardedSeries]) -> None:
    """Say in the log what this rank holds now, in words that the planner's tables use."""
    for s in series:
        held = s.resident_bytes() + s.slots.nbytes()
        log = logger.info if held < s.plan.ledger.replicated_bytes else logger.warning
        owned = f"owns {len(s.plan.owned_layers(s.group.group_rank))}"
        log(
            "Layer sharding: series %s, %d layers over %d ranks: this rank %s, holds %d bytes "
            "instead of %d",
            s.name,
            len(s.plan.series),
            s.group.size,
            f"keeps 1/{s.group.size} of each" if s.plan.is_striped else owned,
            held,
            s.plan.ledger.replicated_bytes,
        )
