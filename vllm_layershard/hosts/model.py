"""One vLLM model, sharded in three steps: plan its linears, see them through loading, attach.

Note [From construction to the first forward]
Before anything else the ranks compare their configurations, and their plans once the model is
built: a rank that was started otherwise, or not at all, is named instead of waited for. While the
model is built, each matched linear is released to the meta device as soon as its parent takes it
in, so that no rank ever holds more than one of them.
1. Plan: `decide` says who owns what, and at whose boundary each movement starts. No effect.
2. Load: a LoadingModel gives the owners' linears memory again. vLLM loads the checkpoint, which is
   a no-op on meta parameters. vLLM then processes the modules in one order on every rank: a
   linear's owner broadcasts its loaded parameters, every rank runs the quant method on them (so
   that all its Python-side state exists everywhere), and the large tensors of those that are not
   the owner become aliases of slots. After the last one the ranks compare the final plan, which
   knows the bytes as processed.
3. Attach: the ops are bound to the loaded series, each decoder layer gets its hook, and each linear
   waits for its weight from now on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
import vllm
from torch import nn
from vllm.logger import init_logger

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.ffn_config import FfnConfig
from vllm_layershard.hosts.ascend.taken_weights import check_not_taken
from vllm_layershard.hosts.boundary import boundary_of, check_boundary, install_boundary
from vllm_layershard.hosts.decision import Decision, decide
from vllm_layershard.hosts.exchange.construction import building
from vllm_layershard.hosts.exchange.exchanged_linear import exchange_before
from vllm_layershard.hosts.exchange.whole_linears import WholeLinears
from vllm_layershard.hosts.ffn.model import ffn_started_with, split_model
from vllm_layershard.hosts.ffn.part import leave_split
from vllm_layershard.hosts.graphs.breaks import end_graphs_at_movements
from vllm_layershard.hosts.graphs.fusions import keep_fusions
from vllm_layershard.hosts.graphs.hidden import wait_ahead_of_adapters, wait_ahead_of_experts
from vllm_layershard.hosts.graphs.peers import check_each_step, check_steps
from vllm_layershard.hosts.graphs.reads import experts_are_traced, require_reads, runs_all_on
from vllm_layershard.hosts.groups import Groups, form_groups
from vllm_layershard.hosts.identity import checkpoint_of, read_as
from vllm_layershard.hosts.linears import check_matched, check_untied, collecting, leave_towers
from vllm_layershard.hosts.loading import LoadedGroup, LoadingModel
from vllm_layershard.hosts.moves.actual_rows import check_rows
from vllm_layershard.hosts.moves.excluded import check_seen
from vllm_layershard.hosts.moves.moved_linear import moving_series, serve_moved
from vllm_layershard.hosts.reload.guard import guard_reloads, reload_together
from vllm_layershard.hosts.reload.process_checkpoints import refuse_checkpoints
from vllm_layershard.hosts.settings import layout_of
from vllm_layershard.hosts.sharded_linear import serve_through
from vllm_layershard.plan import ParallelLayout, select
from vllm_layershard.plan.ffn import beside_split
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.ops import Place, bind, unbind
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.report_file import ReportFile
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.split_mlp import SplitFfn
from vllm_layershard.runtime.stats import Counters
from vllm_layershard.runtime.tensors import materialise
from vllm_layershard.version import __version__

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


def build(
    config: LayerShardConfig,
    vllm_config: VllmConfig,
    construct: Callable[[], nn.Module],
    ffn_config: FfnConfig | None = None,
) -> nn.Module:
    """Construct the model and shard the linears that `config` names. Collective over the world.

    With `ffn_config` its dense MLPs are split, too, and none of their linears is sharded.

    Raises:
        PlanError: a name matches nothing, or a series cannot be planned.
        HostError: the model or its quantisation cannot be sharded on this host.
        MismatchError: the ranks were not started alike, or were given different checkpoints, or
            one of them is missing.
        NodeError: the node has not the memory that the ranks are going to share.
        ConfigError: another server writes its reports where this rank would.
    """
    guard_reloads()
    keep_fusions(vllm_config)
    device = device_of(torch.device(vllm_config.device_config.device_type))
    check_steps(device.torch_device.type)
    layout = layout_of(vllm_config, config)
    num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    started = {
        **started_with(config, layout),
        **ffn_started_with(ffn_config),
        "num_layers": num_layers,
        "model": read_as(vllm_config),
    }
    checkpoint = checkpoint_of(vllm_config)
    groups = form_groups(layout, device.backend, vllm_config, started, checkpoint, config.move)
    try:
        if config.report_dir is not None:
            ReportFile(config.report_dir, groups.first_rank + groups.rank).prepare()
        whole = WholeLinears(
            config.token_exchange, num_layers, vllm_config.parallel_config.tensor_parallel_size
        )
        with collecting(config, num_layers) as found, building(whole):
            if ffn_config is None:
                model, ffn = construct(), None
            else:
                model, ffn = split_model(ffn_config, vllm_config, construct)
        leave_split(found)
        leave_towers(model, found, device.torch_device)
        selected = select([linear for linear, _ in found.values()], config.layers)
        try:
            check_matched(config, selected, [linear for linear, _ in found.values()], vllm_config)
        except PlanError as error:
            raise error if ffn is None else beside_split(error) from None
        modules = {linear.prefix: module for linear, module in found.values()}
        named = [linear.prefix for members in selected.values() for linear in members]
        to_share = [modules[prefix] for prefix in named]
        check_untied(model, to_share)
        check_not_taken(vllm_config, to_share)
        exchanged = whole.checked(
            model, [selected[name] for name in config.token_exchange], modules
        )
        check_seen(model, vllm_config, config, to_share, exchanged)
        check_rows(model, config, to_share)
        paths = _paths(model, modules)
        unbind({boundary_of(path) for path in paths.values()})

        decisions = decide(selected, config, layout, layout.stage_of(groups.rank), paths)
        for path in _boundaries(decisions):
            check_boundary(model.get_submodule(path))

        def attach_and_serve(loaded: Sequence[LoadedGroup]) -> None:
            attach(model, modules, decisions, loaded, config, layout)
            guard(modules, decisions, loaded, vllm_config)
            exchange_before(exchanged, _counters(decisions, loaded))
            groups.have_stored()
            pulled = all(each.group_plan.transport_name == "pull" for each in decisions)
            if pulled and config.move == "weights":
                groups.end_collectives()
            every_series = [series for group in loaded for series in group.series]
            check_each_step(model, every_series)
            refuse_checkpoints(model)
            reload_together(model, Reloads(Act(groups.board()), every_series, device))
            serve(loaded, config, groups, ffn)

        random = str(vllm_config.load_config.load_format) == "dummy"
        loading = LoadingModel(decisions, groups, device, modules, attach_and_serve, random=random)
        loading.begin(config)
        sharded = {
            prefix
            for each in decisions
            for prefixes in each.group_plan.prefixes
            for prefix in prefixes
        }
        for prefix in named:
            if prefix not in sharded:  # a kept one was released with the others
                materialise(modules[prefix], device.torch_device)
    except Exception as error:
        groups.leave(error)
        raise
    groups.compare_plans(loading.planned())
    if layout.one_sided and device.torch_device.type == "cpu":
        groups.require_room(loading.shared_need())  # nobody loads before all have come here
    return model


def started_with(config: LayerShardConfig, layout: ParallelLayout) -> dict[str, Any]:
    """What must be the same on every rank before one model is built; a path may differ."""
    return {
        "vllm-layershard": __version__,
        "vllm": vllm.__version__,
        KEY: asdict(replace(config, report_dir=None)),
        "layout": asdict(layout),
    }


def _paths(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Where the linears are in the model, by prefix; a prefix may differ from the path."""
    found = {id(module): path for path, module in model.named_modules()}
    return {prefix: found[id(m)] for prefix, m in modules.items() if id(m) in found}


def _boundaries(decisions: Sequence[Decision]) -> list[str]:
    """The paths of the decoder layers at which movements start, each once."""
    return list(
        dict.fromkeys(b for each in decisions for series in each.boundaries for b in series)
    )


def attach(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    decisions: Sequence[Decision],
    loaded: Sequence[LoadedGroup],
    config: LayerShardConfig,
    layout: ParallelLayout,
) -> None:
    """Bind the ops to the loaded series, hook the decoder layers, and have the linears wait."""
    end_graphs_at_movements()
    waiting = {}
    for decision, group in zip(decisions, loaded, strict=True):
        for index, series in enumerate(group.series):
            moving = moving_series(series, config, layout)
            serve_linear = serve_through if moving is None else serve_moved
            for position, linear in enumerate(decision.group_plan.linears[index]):
                place = Place(series, position, moving)
                bind(decision.boundaries[index][position], linear.prefix, place)
                serve_linear(modules[linear.prefix], place)
                waiting[linear.prefix] = modules[linear.prefix]
    for path in _boundaries(decisions):
        install_boundary(model.get_submodule(path), path)
    wait_ahead_of_experts(model, waiting)
    wait_ahead_of_adapters()


def guard(
    modules: Mapping[str, nn.Module],
    decisions: Sequence[Decision],
    loaded: Sequence[LoadedGroup],
    vllm_config: VllmConfig,
) -> None:
    """Require that each weight that is moved is read: see hosts/graphs/reads.py."""
    traced = experts_are_traced(vllm_config)
    runs_all = runs_all_on(vllm_config.device_config.device_type)
    for decision, group in zip(decisions, loaded, strict=True):
        for series, linears in zip(group.series, decision.group_plan.linears, strict=True):
            held = [modules[linear.prefix] for linear in linears]
            require_reads(series, held, traced=traced, runs_all=runs_all)


def _counters(decisions: Sequence[Decision], loaded: Sequence[LoadedGroup]) -> dict[str, Counters]:
    """Of the series that each linear belongs to, by prefix."""
    return {
        linear.prefix: series.counters
        for decision, group in zip(decisions, loaded, strict=True)
        for series, linears in zip(group.series, decision.group_plan.linears, strict=True)
        for linear in linears
    }


def serve(
    loaded: Sequence[LoadedGroup],
    config: LayerShardConfig,
    groups: Groups,
    ffn: SplitFfn | None = None,
) -> None:
    """Say in the log what this rank holds, and begin its report, if one is asked for.

    Raises:
        ConfigError: the report cannot be written, or another server writes it.
    """
    every_series = [series for group in loaded for series in group.series]
    for series in every_series:
        _announce(series)
    if config.report_dir is None:
        return
    digests = {series.name: group.plan.digest() for group in loaded for series in group.series}
    rank, first = groups.first_rank + groups.rank, groups.first_rank
    report = Report(config.report_dir, rank, every_series, digests, ffn, first_rank=first)
    report.write()
    for series in every_series:
        series.on_forward_end = report.refresh


def _announce(series: ShardedSeries) -> None:
    """In the words of the planner's tables."""
    plan = series.plan
    held = series.resident_bytes() + series.slots.nbytes()
    log = logger.info if held < plan.ledger.replicated_bytes else logger.warning
    owned = f"owns {len(plan.owned_layers(series.group.group_rank))}"
    if plan.series.has_others and not plan.moves:
        log = logger.info
        owned = (
            f"keeps it whole, whose layout is not that of the others of {plan.series.configured}"
        )
    log(
        "Layer sharding: series %s, %d layers over %d ranks: this rank %s, holds %d bytes "
        "instead of %d",
        series.name,
        len(plan.series),
        series.group.size,
        f"stores 1/{series.group.size} of each" if plan.is_striped else owned,
        held,
        plan.ledger.replicated_bytes,
    )
