"""Evidence: the checkpoint that belongs to a config, from wherever it can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.model import Model
from vllm_layershard.models.sources.beside import PARAMS
from vllm_layershard.models.sources.source import FoundModel
from vllm_layershard.plan import ParallelLayout

if TYPE_CHECKING:
    from vllm_layershard.models.checkpoint.comparison import Comparison
    from vllm_layershard.models.checkpoint.experts import Fault
    from vllm_layershard.models.checkpoint.files import Checkpoint

LOW_BITS: Final = frozenset(
    {"F4", "F6_E2M3", "F6_E3M2", "I8", "U8"}
    | {f"F8_{kind}" for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}
)
"""Formats of safetensors in which only quantised weights are stored."""


class Evidence(NamedTuple):
    """How well a model is known: the revision of its config, and its stored tensors.

    `headers` says where safetensors headers came from; it and `comparison` are None where there
    were none.
    """

    revision: str | None
    headers: str | None = None
    comparison: Comparison | None = None


def evidence_for(
    found: FoundModel,
    model: Model,
    exact: bool,
    progress: Callable[[int, int], None],
    *,
    offline: bool = False,
) -> tuple[Evidence, tuple[str, ...]]:
    """Compare a model with its checkpoint where that is at hand, or on the Hub with `exact`.

    With `offline` the Hub is not asked. Returns notes for the user, too.

    Raises:
        UnknownModelError: `exact`, and the headers are nowhere or cannot be reached.
        ModelError: a header is broken, or the files store experts in another form than is planned.
    """
    if found.directory is None and not exact:
        return Evidence(found.revision), ()
    from vllm_layershard.models.checkpoint.compare import compare
    from vllm_layershard.models.checkpoint.experts import compare_experts
    from vllm_layershard.models.checkpoint.files import (
        MissingFilesError,
        read_checkpoint,
        read_consolidated,
    )
    from vllm_layershard.models.checkpoint.strays import stray_ends
    from vllm_layershard.models.sources.hub import hub_notes

    notes: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    headers = found.source
    if found.directory is not None:
        if PARAMS in found.config.where:  # so vLLM loads Mistral's own layout
            consolidated = read_consolidated(found.directory)
            if consolidated is not None:
                _require_stated(found, model, consolidated)
        try:
            checkpoint = read_checkpoint(found.directory)
        except MissingFilesError as error:
            if not headers.startswith("cache:"):
                raise
            if not exact:  # a cache often holds but a part
                notes = (f"stored tensors are not compared: {error}",)
    if checkpoint is None and exact:
        checkpoint, headers = _from_hub(found, progress, offline)
        notes = (*notes, *(() if found.notes else hub_notes()))
    if checkpoint is None:
        return Evidence(found.revision), notes
    _require_stated(found, model, checkpoint)
    comparison = compare(model.linears(Deployment(ParallelLayout())), model.num_layers, checkpoint)
    of_experts, faults = compare_experts(model.blueprint, checkpoint)
    if faults:
        _refuse_experts(found, model, faults)
    more = (*of_experts, *stray_ends(model.blueprint, checkpoint))
    comparison = replace(comparison, disagreements=comparison.disagreements + more)
    return Evidence(found.revision, headers, comparison), (*notes, *_warnings(comparison))


def _require_stated(found: FoundModel, model: Model, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is quantised where no source says so: the plan would be too large.

    Raises:
        ModelError: names the first tensor in fewer bits, or as beside a quantised weight.
    """
    if model.quantization != "none":
        return
    from vllm_layershard.models.checkpoint.transforms import PACKED, SCALES

    for name, tensor in checkpoint.tensors.items():
        leaf = name.rpartition(".")[2]
        if tensor.dtype in LOW_BITS or leaf in PACKED:
            found.config.fail(
                "quantization_config",
                f"is missing, and {name} is stored as {tensor.dtype}: no source states how the "
                "weights are quantised",
            )
        if leaf in SCALES:
            found.config.fail(
                "quantization_config",
                f"is missing, and {name} is stored, as beside a quantised weight: no source states "
                "a quantisation; state it in config.json, or take the tensor out",
            )


def _refuse_experts(found: FoundModel, model: Model, faults: tuple[Fault, ...]) -> NoReturn:
    """Refuse a plan in which most of the weights are counted in another form than is stored."""
    first, more = faults[0], len(faults) - 1
    others = f"; {more} more {'layers disagree' if more > 1 else 'layer disagrees'}" if more else ""
    alone = (
        f"give --model {found.directory / 'config.json'}"
        if found.directory is not None
        else "leave out --exact"
    )
    found.config.fail(
        "quantization_config" if model.quantization != "none" else "routed experts",
        f"layer {first.layer_id}: the config, with quantisation {model.quantization}, makes "
        f"{first.planned} of its routed experts, and the files store {first.stored}{others}; "
        f"let config.json say what the files hold, or, to plan from it all the same, {alone}",
    )


def _from_hub(
    found: FoundModel, progress: Callable[[int, int], None], offline: bool
) -> tuple[Checkpoint, str]:
    if found.source.startswith("local:"):
        raise UnknownModelError(
            f"{found.name}: --exact needs safetensors files, and there are none beside its "
            "config; give a directory that holds them, or a name on the Hub"
        )
    if offline:
        from vllm_layershard.models.checkpoint.weight_map import INDEX
        from vllm_layershard.models.sources.hub import not_asked

        raise not_asked(found.name, INDEX, "offline=True")
    from vllm_layershard.models.checkpoint.from_hub import fetch_checkpoint

    bundled = found.source.startswith("bundled:")
    asked = "main" if bundled or found.revision is None else found.revision
    checkpoint, revision = fetch_checkpoint(found.name, asked, progress)
    return checkpoint, f"hub:{found.name}@{revision[:12]}"


_MAX_WARNINGS = 3


def _warnings(comparison: Comparison) -> tuple[str, ...]:
    found = comparison.disagreements
    if not found:
        return ()
    more = len(found) - _MAX_WARNINGS
    shown = "; ".join(map(str, found[:_MAX_WARNINGS]))
    return (
        f"config.json and the stored tensors disagree on {len(found)} "
        f"{'tensor' if len(found) == 1 else 'tensors'}: {shown}"
        + (f"; and {more} more (--json lists them)" if more > 0 else ""),
    )
