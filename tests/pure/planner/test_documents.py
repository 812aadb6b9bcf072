"""A result says what the command line prints for the same question, to the byte."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from checkpoints import deepseek, small_config, write
from console import layershard
from layershard_cli.render.owners import print_map
from layershard_cli.render.tables import print_plan
from vllm_layershard import (
    HardwareError,
    LayerShardConfig,
    LayerShardError,
    Layout,
    ModelError,
    compare_layouts,
    list_hardware,
    list_models,
    load_model,
    map_layers,
    plan_model,
)

MODELS = [model.name for model in list_models().models]
LAYOUTS = [
    None,
    Layout(dp=16, ep=True),
    Layout(tp=2, dp=4),
    Layout(tp=4, pcp=2),
    Layout(tp=2, dp=2, pp=2),
]


def flags_of(layout: Layout | None) -> list[str]:
    if layout is None:
        return []
    sizes = [f"--{name}={getattr(layout, name)}" for name in ("tp", "dp", "pcp", "pp")]
    return [*sizes, "--ep" if layout.ep else "--no-ep"]


def written(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def said_of(ask: Callable[[], str]) -> str:
    """What is answered, or in its place the message of an error and its exit code."""
    try:
        return ask()
    except LayerShardError as error:
        code = 3 if isinstance(error, (ModelError, HardwareError)) else 2
        return f"layershard: {error}\nexit code {code}"


def outcome(ask: Callable[[], Any]) -> str:
    """The JSON of a result, or the error in its place."""
    return said_of(lambda: written(ask().document()))


def drawn(render: Callable[[], None]) -> str:
    """What is printed, or the error in its place."""

    def text() -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            render()
        return out.getvalue()

    return said_of(text)


def printed(*words: str) -> str:
    """What a command prints, or in its place the message that it ends with, and the exit code."""
    ended = layershard(*words)
    return ended.stdout if not ended.code else f"{ended.stderr}exit code {ended.code}"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_layout(name: str) -> None:
    model, answered = load_model(name, offline=True), 0
    for layout in LAYOUTS:
        said = outcome(partial(plan_model, model, layout=layout))
        assert said == printed("plan", "--model", name, *flags_of(layout), "--json")
        answered += said.startswith("{")
        said = outcome(partial(map_layers, model, layout=layout))
        assert said == printed("map", "--model", name, *flags_of(layout), "--json")
    assert answered >= 2


QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a list of names": ({"layers": ["o_proj", "q_b_proj"]}, "--layers o_proj --layers q_b_proj"),
    "names with commas": ({"layers": "o_proj,q_b_proj"}, "--layers o_proj,q_b_proj"),
    "those that the planner chooses": (
        {"layers": "auto", "hide_in": ["prefill", "decode"], "tokens": 65536},
        "--layers auto --hide-in prefill,decode --tokens 65536",
    ),
    "those with a stride": (
        {"layers": ["auto"], "layer_stride": 4},
        "--layers auto --layer-stride 4",
    ),
    "every option": (
        {
            "layers": ["o_proj"],
            "prefetch_step": 3,
            "layer_stride": 2,
            "keep_first": True,
            "placement": "striped",
            "transport": "pull",
            "slice_bytes": 1 << 20,
        },
        "--layers o_proj --prefetch-step 3 --layer-stride 2 --keep-first --placement striped "
        "--transport pull --slice-bytes 1048576",
    ),
    "replicated": ({"placement": "replicated"}, "--placement replicated"),
    "sizes": (
        {"tokens": 4096, "batch": 16, "context": 32768, "kv_cache_dtype": "fp8"},
        "--tokens 4K --batch 16 --context 32K --kv-cache-dtype fp8",
    ),
    "a device that it fits": ({"hardware": "H20"}, "--hardware H20"),
    "a device that it does not fit": ({"hardware": "A100"}, "--hardware A100"),
    "a device that lacks a number": (
        {"hardware": "MI300X", "layout": Layout(dp=16, ep=True)},
        "--hardware MI300X --dp 16 --ep",
    ),
    "an unknown device": ({"hardware": "H3000"}, "--hardware H3000"),
    "phases that nobody asks for": ({"hide_in": ["decode"]}, "--hide-in decode"),
    "an unknown phase": ({"hide_in": ["training"]}, "--hide-in training"),
    "an unknown name": ({"layers": ["o_pro"]}, "--layers o_pro"),
    "auto among names": ({"layers": ["auto", "o_proj"]}, "--layers auto,o_proj"),
    "too large a step": ({"prefetch_step": 99}, "--prefetch-step 99"),
    "an unknown placement": ({"placement": "random"}, "--placement random"),
    "an unknown cache": ({"kv_cache_dtype": "int3"}, "--kv-cache-dtype int3"),
    "a layout that cannot be": ({"layout": Layout(tp=3)}, "--tp 3"),
    "no rank": ({"layout": Layout(dp=0)}, "--dp 0"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_plan_of_every_kind(question: str) -> None:
    arguments, flags = QUESTIONS[question]
    said = outcome(lambda: plan_model("DeepSeek-V3", **arguments))
    assert said == printed("plan", "--model", "DeepSeek-V3", *flags.split(), "--json")


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_text_of_a_plan_is_drawn_from_its_result(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    arguments, flags = QUESTIONS[question]

    def render() -> None:
        result = plan_model("DeepSeek-V3", **arguments, traced=True)
        print_plan(result, timeline=True, ledger=True)

    words = ["--model", "DeepSeek-V3", *flags.split(), "--timeline", "--ledger"]
    assert drawn(render) == printed("plan", *words)


def test_the_text_of_a_map_is_drawn_from_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def render() -> None:
        layout = Layout(dp=2, pp=2)
        print_map(map_layers("Meta-Llama-3.1-70B", "o_proj", layout, keep_first=True))

    words = ["--layers", "o_proj", "--dp", "2", "--pp", "2", "--keep-first"]
    assert drawn(render) == printed("map", "--model", "Meta-Llama-3.1-70B", *words)


def test_a_whole_configuration_is_what_check_reads() -> None:
    config = LayerShardConfig(layers=("o_proj",), prefetch_step=2, verify=True)
    said = outcome(lambda: map_layers("DeepSeek-V3", layout=Layout(dp=8), config=config))
    text = '{"layer_sharding": {"layers": ["o_proj"], "prefetch_step": 2, "verify": true}}'
    assert said == printed("check", text, "--model", "DeepSeek-V3", "--dp", "8", "--json")
    launch = plan_model("DeepSeek-V3", layout=Layout(dp=8), config=config).launch
    assert launch is not None
    assert '"verify": true' in launch, "the command to launch has all of it"


COMPARISONS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, ""),
    "layouts": (
        {"layouts": ["tp8", "tp2dp4+ep", "dp8+ep+striped"], "hardware": "H20"},
        "--layout tp8 --layout tp2dp4+ep --layout dp8+ep+striped --hardware H20",
    ),
    "options": (
        {"layouts": ["dp8+ep+shard"], "layers": ["o_proj"], "prefetch_step": 2},
        "--layout dp8+ep+shard --layers o_proj --prefetch-step 2",
    ),
    "a kept layer": (
        {"layouts": ["dp8+shard", "dp8+striped"], "keep_first": True},
        "--layout dp8+shard --layout dp8+striped --keep-first",
    ),
    "a cache": ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    "one that cannot be": ({"layouts": ["tp3"]}, "--layout tp3"),
    "one that is none": ({"layouts": ["8 GPUs"]}, "--layout 8_GPUs"),
}


@pytest.mark.parametrize("name", ["DeepSeek-V3", "Meta-Llama-3.1-405B", "gpt-oss-120b"])
@pytest.mark.parametrize("question", COMPARISONS)
def test_a_comparison(name: str, question: str) -> None:
    arguments, flags = COMPARISONS[question]
    said = outcome(lambda: compare_layouts(name, **arguments))
    words = [word.replace("_GPUs", " GPUs") for word in flags.split()]
    assert said == printed("compare", "--model", name, *words, "--json")


def test_the_lists() -> None:
    assert written(list_models().document()) == printed("models", "--json")
    assert written(list_hardware().document()) == printed("hardware", "--json")
    for name in ("H200", "910c", "L40S"):
        assert written(list_hardware(name).document()) == printed("hardware", name, "--json")
    assert outcome(lambda: list_hardware("H3000")) == printed("hardware", "H3000", "--json")


@pytest.mark.parametrize("lacking", ["nothing", "a tensor"])
def test_a_directory_with_its_tensors(tmp_path: Path, lacking: str) -> None:
    tensors = deepseek(small_config())
    if lacking == "a tensor":
        del tensors["model.layers.2.self_attn.o_proj.weight"]
    write(tmp_path, tensors, shards=2)
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    result = plan_model(load_model(tmp_path), layout=Layout(dp=2))
    said = printed("plan", "--model", str(tmp_path), "--dp", "2", "--json")
    assert written(result.document()) == said
    assert result.checkpoint is not None
    assert bool(result.checkpoint.disagreements) == (lacking == "a tensor")
    agree(result.checkpoint, json.loads(said)["checkpoint"], "checkpoint")


def agree(value: Any, shown: Any, where: str) -> None:
    """Each key of a document is an attribute, and each value is that of the attribute."""
    if isinstance(shown, dict):
        for key, below in shown.items():
            one = value[key] if isinstance(value, Mapping) else getattr(value, key)
            agree(one, below, f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(value, tuple), where
        assert len(value) == len(shown), where
        for one, below in zip(value, shown, strict=True):
            agree(one, below, where)
    else:
        assert value == shown, where
        assert type(value) is type(shown), where


@pytest.mark.parametrize("question", ["every option", "a device that lacks a number", "sizes"])
def test_each_key_of_a_document_is_an_attribute(question: str) -> None:
    arguments, _ = QUESTIONS[question]
    result = plan_model("DeepSeek-V3", **arguments)
    document = result.document()
    assert [document.pop("schema_version"), document.pop("version")]
    agree(result, document, "plan")
    layers = map_layers("Qwen3-32B", layout=Layout(dp=2, pp=2), placement="striped")
    document = layers.document()
    assert [document.pop("schema_version"), document.pop("version")]
    agree(layers, document, "map")
    compared = compare_layouts("Qwen3-32B", ["tp8", "dp2+shard"])
    document = compared.document()
    assert document.pop("schema_version") == 1
    agree(compared, document, "compare")


@pytest.mark.parametrize(
    ("device", "asked", "per_token", "block"),
    [
        ("H200", "fp8", 48_068, 64),
        ("B200", "fp8", 61 * (576 + 132), 64),
        ("GB300", "fp8_e4m3", 61 * (576 + 132), 64),
        ("B200", "auto", 61 * (1152 + 132), 64),
        ("RTX-PRO-6000", "auto", 61 * (656 + 132), 64),
        ("MI300X", "fp8", 61 * (576 + 132), 16),
        ("910C", "auto", 61 * (1152 + 256), 128),
    ],
)
def test_a_plan_and_a_comparison_count_the_cache_of_the_device(
    device: str, asked: str, per_token: int, block: int
) -> None:
    layout = Layout(dp=8, ep=True)
    planned = plan_model("DeepSeek-V3.2", None, layout, hardware=device, kv_cache_dtype=asked)
    assert planned.kv_cache.bytes_per_token == per_token
    compared = compare_layouts("DeepSeek-V3.2", "dp8+ep", hardware=device, kv_cache_dtype=asked)
    (held,) = compared.layouts
    assert held.engine_tokens == max(0, held.room_bytes) // (block * per_token) * block
