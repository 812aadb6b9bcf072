"""A field that is left out has the value that the model's own config class gives it.

Of every config that is planned, each field that its class knows is taken out in turn. The plan is
then that of the config with the class's value written into it, or the field is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from truth.asking import answers_of
from truth.published import PUBLISHED, WITHOUT_A_CLASS, put, without
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment, FoundModel, Model, model_of
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import ParallelLayout

SAID = """
import json, sys
import vllm.transformers_utils.configs as own
from transformers import CONFIG_MAPPING
from vllm.transformers_utils.config import _CONFIG_REGISTRY

def class_of(model_type):
    known = _CONFIG_REGISTRY.get(model_type)
    return getattr(own, known) if isinstance(known, str) else known or CONFIG_MAPPING[model_type]

found = []
for config, field, within in json.load(sys.stdin):
    try:
        made = class_of(config["model_type"])(**config)
    except Exception:  # it refuses what is left: nobody serves that
        found.append([True, None])
        continue
    place = made.text_config if within else made
    missing = not hasattr(place, field)
    found.append([missing, None if missing else getattr(place, field)])
print(json.dumps(found))
"""

NEW = 24
"""What no config has: a number of experts, or a width."""

NO_SIZES = frozenset(
    {
        *("architectures", "model_type", "auto_map", "text_config", "quantization_config"),
        *("dtype", "torch_dtype", "transformers_version", "vision_config", "rope_scaling"),
        *("rope_theta", "rope_parameters", "partial_rotary_factor"),
    }
)
"""What a class has no say in, or what it makes into another form than JSON's."""

MORE = (
    *("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "n_shared_experts"),
    *("tie_word_embeddings", "use_qk_norm", "use_sliding_window", "sliding_window", "hidden_act"),
    *("decoder_sparse_step", "mlp_only_layers", "intermediate_size", "q_lora_rank", "index_topk"),
    *(
        "num_nextn_predict_layers",
        "moe_layer_freq",
        "topk_method",
        "use_routing_bias",
        "shared_expert_intermediate_size",
    ),
)
"""Fields that a config may leave out already."""

ALIASES = ("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size")


@cache
def asked() -> dict[tuple[str, str], tuple[dict[str, Any], bool, list[Any]]]:
    """Model type and field -> the config without it, whether it stood within, the class's word."""
    cases = {}
    for name, config in PUBLISHED.items():
        if name in WITHOUT_A_CLASS:
            continue
        within = "text_config" in config
        place = config["text_config"] if within else config
        for field in dict.fromkeys((*place, *MORE)):
            if field not in NO_SIZES:
                cases[name, field] = (without(config, field, within), within)
    said = ask([[config, field, within] for (_, field), (config, within) in cases.items()])
    return {key: (*case, answer) for (key, case), answer in zip(cases.items(), said, strict=True)}


def ask(cases: list[Any]) -> list[Any]:
    """Whether each class lacks a field, and what it has there."""
    found: list[Any] = answers_of(SAID, cases)
    return found


def read(config: Mapping[str, Any]) -> Model:
    return model_of(FoundModel("m", "local:m", ConfigFile("config", config)))


def outcome(config: Mapping[str, Any], field: str) -> Any:
    """What is planned; the field where it is named, or the whole message where it is not."""
    try:
        return planned(read(config))
    except LayerShardError as error:
        return field if f"{field}: " in str(error) else str(error)


def planned(model: Model) -> Any:
    """All that a config decides, on one rank."""
    one = Deployment(ParallelLayout())
    layers = range(model.num_layers)
    windows = [
        getattr(segment.attention, "window", None)
        for layer in model.blueprint.layers
        for segment in layer
    ]
    held, cached = model.weight_bytes(one, 0), model.kv_bytes_per_token("auto", layers, one)
    return model.linears(one), held, cached, model.is_moe, windows


@pytest.mark.parametrize("model_type", [name for name in PUBLISHED if name not in WITHOUT_A_CLASS])
def test_a_field_that_is_left_out_is_the_classs_or_is_named(model_type: str) -> None:
    for (name, field), (config, within, (missing, value)) in asked().items():
        if name != model_type:
            continue
        if missing:
            continue  # vLLM asks for it with a default of its own, which the other truths compare
        expected = outcome(put(config, field, within, value), field)
        assert outcome(config, field) in (expected, field), field


def test_another_name_of_a_field_is_the_classs() -> None:
    cases = [
        (
            name,
            without(put(config, alias, "text_config" in config, NEW), field, within),
            alias,
            field,
        )
        for name, config in PUBLISHED.items()
        if name not in WITHOUT_A_CLASS
        for within in ["text_config" in config]
        for alias in ALIASES
        for field in fields_of(config)
        if alias not in fields_of(config)
    ]
    said = ask([[config, field, "text_config" in config] for _, config, _, field in cases])
    taken = [
        (name, alias, field, config)
        for (name, config, alias, field), (missing, value) in zip(cases, said, strict=True)
        if not missing and value == NEW
    ]
    assert {alias for _, alias, _, _ in taken} == set(ALIASES)
    for name, alias, field, config in taken:
        written = put(config, field, "text_config" in config, NEW)
        assert outcome(config, alias) == outcome(written, alias), (name, alias, field)


def fields_of(config: Mapping[str, Any]) -> list[str]:
    place = config.get("text_config", config)
    known = ("n_routed_experts", "num_experts", "num_local_experts", "moe_topk")
    return [field for field in (*known, "expert_ffn_hidden_size") if field in place]


@pytest.mark.parametrize("model_type", [name for name in PUBLISHED if name in WITHOUT_A_CLASS])
def test_without_a_class_a_field_is_named(model_type: str) -> None:
    config = PUBLISHED[model_type]
    before = planned(read(config))
    for field in config.keys() - NO_SIZES:
        assert outcome(without(config, field, False), field) in (before, field), field
