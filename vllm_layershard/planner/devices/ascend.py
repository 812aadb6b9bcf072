"""A quantised model on Ascend: in vllm-ascend's formats, or refused where it has no class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NoReturn

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import Hardware
from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.quantization import stated_section
from vllm_layershard.models.quantization.formats.ascend import Ascend
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.split import parts_of
from vllm_layershard.models.quantization.methods.compressed_ascend import read_on_ascend
from vllm_layershard.models.quantization.read import method_of
from vllm_layershard.models.quantization.served.ascend import METHODS, VERSION
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.planner.loaded_model import LoadedModel

_MXFP8: Final = ("modelopt_mxfp8", "mxfp8")
_REMEDY: Final = (
    "give a W8A8 checkpoint of ModelSlim's (method ascend) or of compressed-tensors, or another "
    "--hardware"
)


def as_served(found: LoadedModel, device: Hardware) -> Blueprint:
    """The blueprint of a quantised model in the formats in which vllm-ascend serves it.

    Method fp8 passes, for which it has no class either: the plan stands for that of the W8A8
    checkpoint, and has no launch line.
    Source: vllm-ascend 182b75e, platform.py; quantization/fp8_config.py, `AscendFp8Config`;
    patch/platform/patch_minimax_m2_config.py.

    Raises:
        HardwareError: names the method, or the first module without a class.
    """
    blueprint = found.model.blueprint
    section = stated_section(found.found.config, found.found.beside)
    assert section is not None, "the model is quantised"
    method = method_of(section)
    if method == "fp8":
        if found.found.config.get("model_type") == "minimax_m2":
            raise HardwareError(
                f"--hardware {device.name}: {VERSION} turns method fp8 off for MiniMax-M2 and "
                "loads bfloat16 weights, which this config.json does not state; give the directory "
                "of a bfloat16 checkpoint, or another --hardware"
            )
        return blueprint
    if method == "compressed-tensors":
        blueprint = _compressed(found, section, device)
    elif method != "ascend" and found.quantization not in _MXFP8:
        _refuse(device, f"{VERSION} takes only {', '.join(METHODS)}, not method {method}")
    _require_integers(blueprint, device)
    for prefix in _absorbed(blueprint):
        _refuse(device, f"{prefix}: {VERSION} takes no quantised kv_b_proj")
    _require_head(blueprint, device)
    return blueprint


def _compressed(found: LoadedModel, section: ConfigFile, device: Hardware) -> Blueprint:
    """Source: vllm-ascend 182b75e, quantization/compressed_tensors_config.py, `get_quant_method`,
    which reads no transforms and leaves the head out.
    """
    if found.model.blueprint.quantization.transforms is not None:
        _refuse(device, f"{VERSION} reads no transform_config of compressed-tensors")
    blueprint = found.model.blueprint
    read = replace(blueprint, quantization=read_on_ascend(section, found.architecture))
    for prefix, stated in read.formats():
        if prefix == blueprint.head:
            _refuse(device, f"{prefix}: {VERSION} has no class for heads of compressed-tensors")
        linears, experts = parts_of(stated)
        part = experts if prefix.endswith(".experts") else linears
        if isinstance(part, str):
            _refuse(device, f"{prefix}: {part}")
    return read


def _require_integers(blueprint: Blueprint, device: Hardware) -> None:
    """Refuse the formats of fp8: their classes are Ascend 950's, and each device here is a 910.

    Source: vllm-ascend 182b75e, docs/source/user_guide/
    release_notes.md (W8A8FP8: pull request 10236) and feature_guide/
    expert_parallelism_load_balancer.md (MXFP8: Ascend 950 products).
    """
    for prefix, stated in blueprint.formats():
        linears, experts = parts_of(stated)
        part = experts if prefix.endswith(".experts") else linears
        is_fp8 = isinstance(part, Ascend) and part.scheme == "W8A8FP8_DYNAMIC"
        if is_fp8 or isinstance(part, Microscaled):
            name = stated.name
            _refuse(device, f"{prefix}: vllm-ascend has no kernel for {name} on {device.name}")


def _absorbed(blueprint: Blueprint) -> Iterator[str]:
    """The quantised linears that an attention absorbs.

    Source: vllm-ascend 182b75e, attention/mla_v1.py and sfa_v1.py,
    `process_weights_after_loading`, which assert that there are none.
    """
    for prefix, shape in blueprint.shapes():
        if shape.absorbed and blueprint.quantization.format(prefix, shape) is not None:
            yield prefix


def _require_head(blueprint: Blueprint, device: Hardware) -> None:
    """Source: vLLM 0.32, the classes of models, of which few give their head no quantisation;
    vllm-ascend 182b75e, quantization/methods/w8a8_dynamic.py and w8a8_static.py,
    `process_weights_after_loading`, which transpose a weight where it lies.
    """
    if not blueprint.quantization.quantises_head(blueprint.head):
        return
    if not blueprint.head_quantisable:
        _refuse(device, f"{blueprint.head}: vLLM's class of this model loads no quantised head")
    if blueprint.tied:
        _refuse(
            device,
            f"{blueprint.head}: {VERSION} transposes a quantised head, and this one's weight is "
            "the embedding's",
        )


def _refuse(device: Hardware, why: str) -> NoReturn:
    raise HardwareError(f"--hardware {device.name}: {why}; {_REMEDY}")
