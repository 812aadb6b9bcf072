"""Any config.json that JSON can say, and any bytes: a plan or a named error, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoints import small_config
from fuzz import targets
from vllm_layershard.models import bundled_names
from vllm_layershard.models.sources import source

MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.data_too_large])


def bundled(name: str) -> dict[str, Any]:
    """Four layers of it where that is a model, all of them where layers are of many kinds."""
    whole = json.loads((source._BUNDLED / f"{name.replace('/', '--')}.json").read_text())
    few = {**whole, "num_hidden_layers": 4}
    return few if targets.config(json.dumps(few).encode()) else whole


CONFIGS: dict[str, dict[str, Any]] = {
    **{name: bundled(name) for name in bundled_names()},
    "small": small_config(),
}
KEYS = sorted({key for config in CONFIGS.values() for key in config})

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-4, 200)
    | st.integers()
    | st.sampled_from([0, 1, 2, 1 << 20, 1 << 63, 1 << 64, 10**30, -(10**30)])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["fp8", "silu", "bfloat16", "float32", "sliding_attention", "SSSS", "auto"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_every_config_starts_from_one_that_is_planned() -> None:
    for name, config in CONFIGS.items():
        assert targets.config(json.dumps(config).encode()), name


@MANY
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), values, max_size=5),
    gone=st.sets(st.sampled_from(KEYS), max_size=3),
)
@example(name="small", changes={"num_hidden_layers": 1024, "hidden_size": 1}, gone=set())
@example(name="small", changes={"n_routed_experts": 65536, "num_experts_per_tok": 1}, gone=set())
@example(name="small", changes={"vocab_size": 1, "num_attention_heads": 1}, gone=set())
def test_any_change_of_a_config(name: str, changes: dict[str, Any], gone: set[str]) -> None:
    config = {key: value for key, value in {**CONFIGS[name], **changes}.items() if key not in gone}
    targets.config(json.dumps(config).encode())


@MANY
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    section=st.sampled_from(["quantization_config", "rope_scaling", "text_config"]),
    changes=st.dictionaries(
        st.sampled_from(
            ["quant_method", "weight_block_size", "activation_scheme", "ignored_layers", "fmt"]
        ),
        values | st.just([128, 128]) | st.just("dynamic") | st.just("fp8"),
        max_size=5,
    ),
)
def test_any_change_of_a_section_is_planned_or_refused_in_one_message(
    name: str, section: str, changes: dict[str, Any]
) -> None:
    config = CONFIGS[name]
    there = config.get(section)
    changed = {**(there if isinstance(there, dict) else {}), **changes}
    targets.config(json.dumps({**config, section: changed}).encode())


@MANY
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    at=st.floats(0, 1),
    change=st.binary(max_size=6),
    gone=st.integers(0, 6),
)
def test_any_changed_bytes(name: str, at: float, change: bytes, gone: int) -> None:
    text = json.dumps(CONFIGS[name]).encode()
    place = int(at * len(text))
    targets.config(text[:place] + change + text[place + gone :])


@MANY
@given(values)
def test_any_additional_config(value: Any) -> None:
    targets.additional(json.dumps(value).encode())
    targets.additional(json.dumps({"layer_sharding": value}).encode())
    targets.additional(json.dumps({"layer_sharding": {"layers": ["o_proj"], "x": value}}).encode())


@pytest.mark.parametrize("deep", ["[", '{"a":', '{"quantization_config":{"a":['])
def test_a_deep_document_is_refused_in_one_message(deep: str) -> None:
    assert not targets.config((deep * 50_000).encode())
    assert not targets.additional((deep * 5_000).encode())


def test_a_stage_that_keeps_no_cache() -> None:
    """Found here: two of four hybrid layers on a stage divided by zero bytes a token."""
    name = "Qwen/Qwen3-Next-80B-A3B-Instruct"
    path = source._BUNDLED / f"{name.replace('/', '--')}.json"
    few = {**json.loads(path.read_text()), "num_hidden_layers": 4}
    assert targets.config(json.dumps(few).encode())
