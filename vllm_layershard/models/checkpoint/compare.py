"""Holds what the config says of every linear against what the files store of it.

What may differ, and why, stands in `transforms.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_layershard.models.checkpoint.comparison import Comparison, Disagreement
from vllm_layershard.models.checkpoint.files import Checkpoint
from vllm_layershard.models.checkpoint.safetensors import Stored
from vllm_layershard.models.checkpoint.strays import strays_beside
from vllm_layershard.models.checkpoint.transforms import (
    COMPUTED,
    CONVERTED,
    DEQUANTISED,
    DRAFT,
    PARTS,
    RENAMED,
    SHARED,
    STEMS,
    TORCH_DTYPES,
)
from vllm_layershard.plan import Linear, TensorSpec

_LAYER = re.compile(r"^(.*?\.|)layers\.(\d{1,9})\.")


def compare(linears: Sequence[Linear], num_layers: int, checkpoint: Checkpoint) -> Comparison:
    """Compare the linears of a model on one rank (tp = 1) with its checkpoint."""
    by_module = _by_module(checkpoint)
    stem = _stem_on_disk(linears, by_module)
    held: dict[str, int] = {}
    disagreements: list[Disagreement] = []
    for linear in linears:
        on_disk = _rename(linear.prefix, stem)
        parts = _parts(on_disk, by_module)
        held[linear.prefix] = sum(t.nbytes for part in parts for t in part.values())
        disagreements.extend(_differences(linear, on_disk, parts))
    draft_bytes, beyond = _beyond(stem, num_layers, checkpoint)
    expected, found = f"no layer beyond {num_layers - 1}", "a layer the config lacks"
    disagreements.extend(Disagreement(name, expected, found) for name in beyond)
    return Comparison(checkpoint, held, draft_bytes, tuple(disagreements))


Module = Mapping[str, Stored]
"""The tensors of one module by their last names."""


def _by_module(checkpoint: Checkpoint) -> Mapping[str, Module]:
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in checkpoint.tensors.items():
        if ".experts." not in name:
            module, _, leaf = name.rpartition(".")
            modules.setdefault(module, {})[leaf] = tensor
    return modules


def _stem_on_disk(linears: Sequence[Linear], modules: Mapping[str, Module]) -> tuple[str, str]:
    """What stands before `layers.` in the planner's names, and on disk."""
    first = _LAYER.match(linears[0].prefix) if linears else None
    planned = first[1] if first is not None else ""
    stored = {match[1] for module in modules if (match := _LAYER.match(module))}
    for candidate in (planned, *(f"{stem}." if stem else "" for stem in STEMS)):
        if candidate in stored:
            return planned, candidate
    return planned, planned


def _rename(prefix: str, stem: tuple[str, str]) -> str:
    planned, on_disk = stem
    return on_disk + prefix.removeprefix(planned)


def _parts(prefix: str, modules: Mapping[str, Module]) -> tuple[Module, ...]:
    """The modules on disk that make up a linear; a part that is not there is an empty one."""
    names = [prefix, *(prefix.replace(ours, theirs) for ours, theirs in RENAMED if ours in prefix)]
    for name in names:
        if name in modules:
            return (modules[name],)
        stem, _, last = name.rpartition(".")
        parts = [f"{stem}.{part}" for part in PARTS.get(last, ())]
        if any(part in modules for part in parts):
            return tuple(modules.get(part, {}) for part in parts)
    return ({},)


def _differences(linear: Linear, on_disk: str, parts: tuple[Module, ...]) -> Iterator[Disagreement]:
    if not any(parts):
        yield Disagreement(linear.prefix, _said(linear.tensors), "nothing")
        return
    total = sum(tensor.nbytes for part in parts for tensor in part.values())
    repacked = total == linear.large_bytes + linear.small_bytes
    for spec in linear.tensors:
        if spec.name in COMPUTED:
            continue
        name = f"{linear.prefix}.{spec.name}"
        stored = [part[spec.name] for part in parts if spec.name in part]
        if len(stored) < len(parts):
            found = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in stored) or "nothing"
            if not repacked:
                yield Disagreement(name, _said([spec]), found if not stored else f"only {found}")
        elif not _agree(spec, stored, on_disk.rpartition(".")[2] in DEQUANTISED):
            found = " + ".join(f"{t.dtype} {list(t.shape)}" for t in stored)
            yield Disagreement(name, _said([spec]), found)
    known = {spec.name for spec in linear.tensors}
    stray = {"weight", "bias"} - known
    if on_disk.rpartition(".")[2] not in DEQUANTISED:
        stray |= strays_beside(linear.tensors)
    for part in parts:
        for leaf, tensor in part.items():
            if leaf in stray:
                yield Disagreement(tensor.name, "nothing", f"{tensor.dtype} {list(tensor.shape)}")


def _agree(spec: TensorSpec, stored: Sequence[Stored], dequantised: bool) -> bool:
    """Whether the stored parts make up the planned tensor."""
    if spec.name in SHARED:
        return {t.shape for t in stored} == {spec.shape}
    if spec.name == "qweight":  # awq packs its columns, gptq its rows: parts lie side by side
        columns = sum(t.shape[1] for t in stored if len(t.shape) == len(spec.shape))
        return {t.shape[:1] for t in stored} == {spec.shape[:1]} and columns == spec.shape[1]
    dtypes = {TORCH_DTYPES.get(t.dtype, t.dtype) for t in stored}
    if spec.name not in ("weight", "bias") or spec.dtype.startswith(("int", "uint")):
        # Scales are cast, those of an activation shared, and packed weights repacked: nobody keeps
        # their shapes.
        as_many = sum(t.nbytes for t in stored) == spec.nbytes or _elements(stored) == _size(spec)
        return as_many or _size(spec) == 1
    if dequantised:
        dtypes -= {"float8_e4m3fn"}
    if dtypes - {spec.dtype} and not ({spec.dtype} | dtypes) <= CONVERTED:
        return False
    rest = {t.shape[1:] for t in stored}
    rows = sum(t.shape[0] if t.shape else 1 for t in stored)
    return (rows, rest) == (spec.shape[0], {spec.shape[1:]})


def _elements(stored: Sequence[Stored]) -> int:
    return sum(_product(t.shape) for t in stored)


def _size(spec: TensorSpec) -> int:
    return _product(spec.shape)


def _product(shape: Sequence[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements


def _said(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in specs)


def _beyond(
    stem: tuple[str, str], num_layers: int, checkpoint: Checkpoint
) -> tuple[int, list[str]]:
    """Bytes of draft layers, and all tensors of layers that are neither draft nor in the config."""
    later: dict[int, list[Stored]] = {}
    draft = 0
    for name, tensor in checkpoint.tensors.items():
        match = _LAYER.match(name)
        if match is not None and match[1] == stem[1] and int(match[2]) >= num_layers:
            later.setdefault(int(match[2]), []).append(tensor)
        elif name.startswith("mtp."):
            draft += tensor.nbytes
    unexplained: list[str] = []
    for _, tensors in sorted(later.items()):
        if any(DRAFT.search(tensor.name) for tensor in tensors):
            draft += sum(tensor.nbytes for tensor in tensors)
        else:
            unexplained += [tensor.name for tensor in tensors]
    return draft, unexplained
