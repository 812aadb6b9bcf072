"""What a caller of the planner may get wrong: the error is the one that flags get."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints import small_config
from vllm_layershard import (
    ConfigError,
    HardwareError,
    LayerShardConfig,
    Layout,
    LayoutCapacity,
    ModelError,
    PlanError,
    RefusedLayout,
    UnknownModelError,
    compare_layouts,
    load_hardware,
    load_model,
    map_layers,
    plan_model,
)

CONFIG = LayerShardConfig(layers=("o_proj",))
NOWHERE = "http://127.0.0.1:9"
"""Nothing listens at this port: a request to it ends with another message."""


def planned(**arguments: Any) -> Any:
    return plan_model("DeepSeek-V3", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prefetch_step": "2"}, ConfigError, "layer_sharding.prefetch_step = '2': .*give a whole"),
        ({"keep_first": 1}, ConfigError, "layer_sharding.keep_first = 1: .*; give true or false"),
        ({"placement": 3}, ConfigError, "layer_sharding.placement = 3: .*; choose one of round_r"),
        ({"prefetch": 2}, ConfigError, "prefetch: is no argument of plan_model; .* prefetch_step"),
        ({"dp": 8}, ConfigError, r"^dp: is no argument of plan_model; write layout=Layout\(dp=8"),
        ({"prefetch": 2, "config": CONFIG}, ConfigError, "prefetch: is no argument of plan_model"),
        ({"layers": 1}, ConfigError, "1 is no name; write names as strings"),
        ({"layers": "auto", "hide_in": 1}, ConfigError, "1 is no name; write names as strings"),
        ({"hide_in": iter(["decode"])}, ConfigError, "is no name; write names as strings"),
        (
            {"layout": "dp8"},
            ConfigError,
            r"layout = 'dp8': is no Layout; write layout=Layout\(dp=8",
        ),
        ({"layout": {"dp": 8}}, ConfigError, "layout = {'dp': 8}: is no Layout; write layout=Lay"),
        ({"layout": (8,)}, ConfigError, r"layout = \(8,\): is no Layout; write layout=Layout"),
        ({"layout": 8}, ConfigError, "layout = 8: is no Layout; write layout=Layout"),
        ({"layers": "auto", "layout": 8}, ConfigError, "layout = 8: is no Layout; write layout=La"),
        ({"layout": Layout(ep="no")}, PlanError, "ep = 'no': is no bool; give True or False"),  # type: ignore[arg-type]
        ({"layout": Layout(dp=8, ep=1)}, PlanError, "ep = 1: is no bool; give True or False"),  # type: ignore[arg-type]
        ({"layers": []}, ConfigError, "layer_sharding.layers: is empty; name at least one"),
        ({"layers": [3]}, ConfigError, "3 is no name; write names as strings"),
        ({"layers": ["o_proj"], "config": CONFIG}, ConfigError, "leave out layers, or leave out"),
        ({"prefetch_step": 2, "config": CONFIG}, ConfigError, "leave out prefetch_step, or leave"),
        ({"config": ["o_proj"]}, ConfigError, "config = .*: is no LayerShardConfig; make one"),
        ({"tokens": 0}, ConfigError, "tokens = 0: give a whole number from 1 to 67,108,864"),
        ({"tokens": 8e3}, ConfigError, "tokens = 8000.0: give a whole number"),
        ({"batch": 1 << 21}, ConfigError, "batch = 2097152: give .* to 1,048,576"),
        ({"context": True}, ConfigError, "context = true: give a whole number"),
        ({"hide_in": "training"}, ConfigError, "'training' is not one of prefill, decode"),
        ({"layout": Layout(dp=8.0)}, PlanError, "dp = 8.0: a parallel size is a whole number"),
        ({"layout": Layout(dp=-1)}, PlanError, "dp = -1: a parallel size is at least 1"),
        ({"hardware": 200}, HardwareError, "200 is no name; give a device such as 'H200'"),
        ({"kv_cache_dtype": "int3"}, ConfigError, "int3"),
    ],
)
def test_an_argument_that_cannot_be(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(**arguments)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: load_model(3), UnknownModelError, "3 is no name; give a path or a name such as"),
        (
            lambda: load_model("NoModel"),
            UnknownModelError,
            "'NoModel' is neither a path, nor a bun",
        ),
        (lambda: load_model(Path("no/such")), ModelError, "no/such"),
        (lambda: map_layers("DeepSeek-V3", "auto"), ConfigError, "name the linears"),
        (
            lambda: compare_layouts("DeepSeek-V3", placement="striped"),
            ConfigError,
            "placement: each layout says its own; write .shard or .striped",
        ),
        (lambda: compare_layouts("DeepSeek-V3", [8]), ConfigError, "--layout 8: write sizes of tp"),
        (lambda: compare_layouts("DeepSeek-V3", 1), ConfigError, "--layout 1: write sizes of tp"),
        (lambda: compare_layouts("DeepSeek-V3", 0), ConfigError, "--layout 0: write sizes of tp"),
        (
            lambda: compare_layouts("DeepSeek-V3", dp=8),
            ConfigError,
            r"^dp: is no argument of compare_layouts; write layouts=\['dp8\+ep'\]",
        ),
        (
            lambda: map_layers("DeepSeek-V3", hardware="H200"),
            ConfigError,
            "^hardware: is no argument of map_layers; those are model, layers, layout, config",
        ),
        (
            lambda: map_layers("DeepSeek-V3", layout=8),
            ConfigError,
            "layout = 8: is no Layout; write layout=Layout",
        ),
        (lambda: planned().failures(1), ConfigError, "1 is no name; write names as strings"),
        (
            lambda: planned(config=CONFIG).failures("training"),
            ConfigError,
            "'training' is not one of prefill, decode",
        ),
    ],
)
def test_another_question_that_cannot_be(
    ask: Callable[[], Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        ask()


def test_offline_never_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(UnknownModelError, match="cannot be reached"):
        load_model("someone/model")
    with pytest.raises(UnknownModelError, match="offline=True forbids to ask the Hub; give the"):
        load_model("someone/model", offline=True)
    with pytest.raises(UnknownModelError, match="cannot be reached"):
        plan_model(load_model("DeepSeek-V3"), exact=True)
    model = load_model("DeepSeek-V3", offline=True)
    with pytest.raises(UnknownModelError, match="offline=True forbids to ask the Hub; give the"):
        plan_model(model, exact=True)
    assert plan_model(model).model.source == "bundled:deepseek-ai/DeepSeek-V3"


def test_a_model_is_loaded_once_and_asked_often(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small_config()))
    model = load_model(path)
    path.unlink()
    assert (model.name, model.num_layers, model.revision) == (str(path), 9, None)
    two, four = (plan_model(model, layout=Layout(dp=ranks)) for ranks in (2, 4))
    assert len(two.memory.saved_bytes) == 2
    assert four.memory.saved_bytes_min > two.memory.saved_bytes_min


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    known = planned(hardware="H200").memory
    small = replace(load_hardware("H200"), memory_bytes=None)
    assert (known.fits, planned(hardware=small).memory.fits) == (True, None)
    file = tmp_path / "ours.json"
    file.write_text(json.dumps({"base": "H200", "memory_bytes": 1 << 36}))
    result = planned(hardware=str(file))
    assert (result.memory.fits, result.launch) == (False, None)
    assert result.failures() == ("it does not fit", "prefill does not hide")


def test_room_is_what_a_comparison_counts() -> None:
    for device in ("H200", "910C", "A100"):
        layout = Layout(dp=16, ep=True)
        result = planned(layout=layout, hardware=device)
        (held,) = compare_layouts("DeepSeek-V3", "dp16+ep+shard", hardware=device).layouts
        assert result.room_tokens == held.engine_tokens
        assert bool(result.room_tokens) == result.memory.fits
    unknown = replace(load_hardware("H200"), memory_bytes=None)
    assert planned(hardware=unknown).room_tokens is None


def test_a_usual_layout_that_a_model_cannot_have_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    tp8, *others = compare_layouts(tmp_path).layouts
    assert isinstance(tp8, RefusedLayout)
    assert tp8.refused.startswith("tp = 8")
    assert all(isinstance(held, LayoutCapacity) for held in others)
    with pytest.raises(PlanError, match="tp = 8"):
        compare_layouts(tmp_path, ["tp8"])


def test_alternatives_save_other_bytes_for_other_times() -> None:
    result = planned(layers=["o_proj", "q_b_proj"])
    points = result.alternatives()
    (same,) = [p for p in points if (p.layers, p.layer_stride) == (result.sharding.layers, 1)]
    assert same.saved_bytes == result.memory.saved_bytes_min
    exposed = [round(seconds * 1e6, 1) for seconds in same.exposed]
    assert exposed == [phase.exposed_us for phase in result.prefetch.phases]
    assert max(point.saved_bytes for point in points) > same.saved_bytes
    assert planned(hardware="MI300X", layout=Layout(dp=16, ep=True)).alternatives() == ()


def test_failures_are_those_of_the_phases_that_are_named() -> None:
    result = planned(layers="o_proj", tokens=65536)
    assert result.failures() == ()
    assert result.failures(["prefill", "decode"]) == ("decode does not hide",)
    assert result.failures("decode") == ("decode does not hide",)


def test_timelines_are_there_if_they_are_asked_for() -> None:
    for traced in (True, False):
        (phase, _) = planned(traced=traced).forecast.phases
        assert bool(phase.asked.forward.spans) == traced


def test_a_result_is_shown_in_a_line() -> None:
    """What a notebook prints: not the plan of every rank."""
    model, layout = load_model("DeepSeek-V3"), Layout(dp=8, ep=True)
    planned = plan_model(model, ["o_proj"], layout, tokens=65536)
    mapped = map_layers(model, ["o_proj", "q_b_proj"], layout)
    name = "deepseek-ai/DeepSeek-V3"
    assert repr(model) == f"<LoadedModel {name} from bundled:{name}>"
    assert repr(mapped) == f"<MapResult {name} on 8 ranks: o_proj, q_b_proj>"
    verdict = planned.prefetch.verdict
    assert repr(planned) == f"<PlanResult {name} on 8 ranks: o_proj; {verdict}>"
