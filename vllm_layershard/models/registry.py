"""Which family plans which architecture. Fails closed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Final

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.blueprint import Blueprint, with_mlps
from vllm_layershard.models.families.defaults import completed
from vllm_layershard.models.model import Model
from vllm_layershard.models.quantization import (
    cache_of,
    quantization_of,
    require_dtype,
    stated_section,
)
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import FoundModel, find

_FAMILIES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "DeepseekV2ForCausalLM": ("mla", ("deepseek_v2",)),
    "DeepseekV3ForCausalLM": ("mla", ("deepseek_v3", "kimi_k2")),
    "DeepseekV32ForCausalLM": ("mla", ("deepseek_v32",)),
    "GlmMoeDsaForCausalLM": ("mla", ("glm_moe_dsa",)),
    "LlamaForCausalLM": ("dense", ("llama",)),
    "MistralForCausalLM": ("dense", ("mistral",)),
    "Ministral3ForCausalLM": ("dense", ("ministral3",)),
    "Qwen2ForCausalLM": ("dense", ("qwen2",)),
    "Qwen3ForCausalLM": ("dense", ("qwen3",)),
    "Qwen3VLForConditionalGeneration": ("dense", ("qwen3_vl",)),
    "Qwen3MoeForCausalLM": ("qwen3_moe", ("qwen3_moe",)),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_moe", ("qwen3_vl_moe",)),
    "MixtralForCausalLM": ("mixtral", ("mixtral",)),
    "Glm4MoeForCausalLM": ("glm4_moe", ("glm4_moe",)),
    "Glm4MoeLiteForCausalLM": ("mla", ("glm4_moe_lite",)),
    "MiniMaxM2ForCausalLM": ("minimax_m2", ("minimax_m2",)),
    "BailingMoeV2ForCausalLM": ("bailing_moe", ("bailing_moe", "bailing_moe_v2")),
    "KimiK25ForConditionalGeneration": ("mla", ("kimi_k25",)),
    "LongcatFlashForCausalLM": ("longcat", ("longcat_flash",)),
    "Qwen3NextForCausalLM": ("qwen3_next", ("qwen3_next",)),
    "Qwen3_5ForCausalLM": ("qwen3_next", ("qwen3_5_text",)),
    "Qwen3_5ForConditionalGeneration": ("qwen3_next", ("qwen3_5",)),
    "Qwen3_5MoeForCausalLM": ("qwen3_next", ("qwen3_5_moe_text",)),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_next", ("qwen3_5_moe",)),
    "GptOssForCausalLM": ("gpt_oss", ("gpt_oss",)),
}
"""Architecture -> the module whose `build(architecture, config)` reads it, imported only when it
is asked for, and the model types that go with it."""

_SAME: Final = {"LLaMAForCausalLM": "LlamaForCausalLM"}
"""Another name that vLLM's registry has for a class."""

_LISTS: Final = (
    *("ignored_layers", "modules_to_not_convert", "ignore", "exclude", "config_groups"),
    *("quantized_layers", "layer_quant_config", "dynamic", "modules_in_block_to_quantize"),
    *("quantization", "extra_config"),
)
"""Keys of a section that may name modules."""

_TRANSFORMS: Final = (
    "transform_config: its matrices are counted among the linears; layer sharding of a linear with "
    "one has never been tried"
)

_DEPRECATED: Final = (
    "quant_method: fbgemm_fp8 is deprecated; vLLM 0.32 serves it with the flag "
    "--allow-deprecated-quantization only"
)

_LATENT: Final = frozenset({"mla", "longcat"})
"""Families whose attention is MLA."""


def supported() -> tuple[str, ...]:
    """The architectures that can be planned."""
    return tuple(_FAMILIES)


def read_model(name: str) -> Model:
    """Find a model by path or name and read it.

    Raises:
        UnknownModelError: nothing of that name, or an architecture without a family.
        ModelError: its config.json is broken or inconsistent.
    """
    return model_of(find(name))


def model_of(found: FoundModel) -> Model:
    """Read a model from a config that was found."""
    config = found.config
    architectures = config.strings("architectures")
    model_type = config.string("model_type")
    known = ", ".join(supported())
    if not architectures:
        config.fail("architectures", f"is missing; supported are {known}")
    architecture = _SAME.get(architectures[0], architectures[0])
    if architecture not in _FAMILIES:
        from vllm_layershard.models.vllm_classes import said_of

        raise UnknownModelError(
            f"{config.where}: architecture {architecture!r} (model_type {model_type!r}) is not "
            f"known to the planner, and its bytes are not guessed: {said_of(architecture)}; "
            f"supported are {known}"
        )
    family, model_types = _FAMILIES[architecture]
    if model_type not in model_types:
        raise UnknownModelError(
            f"{config.where}: model_type {model_type!r} with architecture {architecture!r} is not "
            f"known to the planner; expected {' or '.join(model_types)}"
        )
    build = import_module(f"vllm_layershard.models.families.{family}").build
    blueprint: Blueprint = build(architecture, completed(config, model_type))
    section = stated_section(config, found.beside)
    quantization = quantization_of(section, architecture)
    blueprint = replace(blueprint, quantization=quantization)
    if section is not None:
        require_dtype(section, quantization, blueprint.dtype)
        blueprint = _matched(section, architecture, blueprint)
        if family == "qwen3_next" and str(section.get("quant_method")).lower() == "quark":
            from vllm_layershard.models.quantization.methods.quark_shared import with_group

            blueprint = with_mlps(
                blueprint, lambda mlp, layer: with_group(mlp, layer, quantization)
            )
    latent = family in _LATENT
    asked = cache_of(section, latent=latent)
    read = Model(found.name, found.source, architecture, blueprint, asked)
    if section is not None and section.get("quant_method") == "ascend":
        from vllm_layershard.models.quantization.described_cache import described_cache
        from vllm_layershard.models.quantization.described_vocabulary import require_vocabulary

        head = blueprint.head if blueprint.head_quantisable else None
        require_vocabulary(section, architecture, blueprint.stem, head)
        cache = described_cache(section, latent=latent)
        noted = replace(blueprint, notes=(*blueprint.notes, *cache.notes))
        return read._replace(blueprint=noted, int8_layers=cache.layers)
    return read


def _matched(section: ConfigFile, architecture: str, blueprint: Blueprint) -> Blueprint:
    """With a note for each list of a section in which a name is of no module.

    Raises:
        ModelError: nothing of the model is quantised by it.
    """
    quantised = blueprint.is_quantised
    if blueprint.quantization.transforms is not None:
        blueprint = replace(blueprint, notes=(*blueprint.notes, f"{section.where}: {_TRANSFORMS}"))
    if blueprint.quantization.name == "fbgemm_fp8":
        blueprint = replace(blueprint, notes=(*blueprint.notes, f"{section.where}: {_DEPRECATED}"))
    if quantised and not any(map(section.get, _LISTS)):
        return blueprint
    from vllm_layershard.models.quantization.names import names_of
    from vllm_layershard.models.quantization.unmatched import (
        refuse_unquantised,
        unmatched_notes,
    )

    names = names_of(architecture)
    if not quantised and section.get("quant_method") == "ascend":  # it states every module
        note = f"{section.where}: states FLOAT for every linear and expert: nothing is quantised"
        return replace(blueprint, notes=(*blueprint.notes, note))
    if not quantised:
        refuse_unquantised(section, names, blueprint.modules())
    found = unmatched_notes(section, names, blueprint.modules(), len(blueprint.layers))
    return replace(blueprint, notes=(*blueprint.notes, *found)) if found else blueprint
