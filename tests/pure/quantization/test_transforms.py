"""What compressed-tensors turns activations with: counted to the byte, or refused as vLLM does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_layershard.errors import LayerShardError, ModelError, PlanError
from vllm_layershard.models import Deployment, FoundModel, Model, model_of
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

ONE = Deployment(ParallelLayout())
DENSE = "Qwen--Qwen3-32B"
HIDDEN, WIDTH, QUERIES, KEYS = 5120, 25600, 8192, 1024


def model(*apply: Any, name: str = DENSE, **scheme: Any) -> Model:
    config = json.loads((_BUNDLED / f"{name}.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"0": group},
        "ignore": ["lm_head"],
        "transform_config": {
            "config_groups": {"R1": {"type": "hadamard", "apply": list(apply), **scheme}}
        },
    }
    return model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))


def turn(targets: Any, location: str = "input", **more: Any) -> dict[str, Any]:
    return {"targets": targets, "location": location, **more}


PLAIN = model().weight_bytes(ONE, 0)
COUNTED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], int]] = {
    "folded into the weights": (
        [turn(["Linear"], "weight_input"), turn("q", "weight_output")],
        {},
        0,
    ),
    "what matches nothing": ([turn(["re:.*other"])], {}, 0),
    "one for all layers": ([turn(["re:.*down_proj"])], {}, WIDTH**2),
    "one a size": ([turn(["Linear"])], {}, HIDDEN**2 + QUERIES**2 + WIDTH**2),
    "by heads": ([turn(["Linear"])], {"head_dim": 128}, 128**2),
    "all parts by name": ([turn([f"re:.*{p}_proj" for p in "qkv"])], {}, HIDDEN**2),
    "what is left out": ([turn("Linear", ignore=["re:.*mlp.*"])], {}, HIDDEN**2 + QUERIES**2),
    "outputs": ([turn(["re:.*[qkv]_proj"], "output")], {}, QUERIES**2 + KEYS**2),
    "an output of one part": ([turn(["re:.*k_proj"], "output")], {}, KEYS**2),
    "both ends": (
        [turn(["re:.*o_proj"]), turn(["re:.*o_proj"], "output")],
        {},
        QUERIES**2 + HIDDEN**2,
    ),
    "a cache that no linear has": ([turn(["re:.*self_attn$"], "k_cache")], {}, 0),
}


@pytest.mark.parametrize("case", COUNTED)
def test_matrices_are_counted_once_a_scheme_and_size(case: str) -> None:
    apply, scheme, elements = COUNTED[case]
    found = model(*apply, **scheme)
    held = found.weight_bytes(ONE, 0)
    assert held.linears - PLAIN.linears == 2 * elements
    assert held._replace(linears=0) == PLAIN._replace(linears=0)
    assert any("transform_config" in note for note in found.notes) == any(
        each["location"] in ("input", "output", "k_cache") for each in apply
    )


def test_each_stage_has_those_of_its_layers() -> None:
    found = model(turn(["re:.*layers\\.0\\..*down_proj"]))
    stages = Deployment(ParallelLayout(pp=2))
    plain = [model().weight_bytes(stages, rank).linears for rank in (0, 1)]
    held = [found.weight_bytes(stages, rank).linears for rank in (0, 1)]
    assert [a - b for a, b in zip(held, plain, strict=True)] == [2 * WIDTH**2, 0]


def test_two_schemes_of_one_size_are_two() -> None:
    config = _config()
    found = model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))
    section = {"type": "hadamard", "apply": [turn(["re:.*layers\\.1\\.mlp.down_proj"])]}
    config = _config()
    config["quantization_config"]["transform_config"]["config_groups"]["R2"] = section
    both = model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))
    more = both.weight_bytes(ONE, 0).linears - found.weight_bytes(ONE, 0).linears
    assert more == 2 * WIDTH**2


def _config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_BUNDLED / f"{DENSE}.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    first = {"type": "hadamard", "apply": [turn(["re:.*layers\\.0\\.mlp.down_proj"])]}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"0": group},
        "transform_config": {"config_groups": {"R1": first}},
    }
    return config


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "a part of a fused input": (
        [turn(["re:.*qkv_proj", "re:.*q_proj", "re:.*gate_up_proj"], inverse=True)],
        {"head_dim": None},
        "qkv_proj: vLLM 0.32 needs the same transform of the input for all its parts",
    ),
    "parts that differ": (
        [turn(["re:.*q_proj"]), turn(["re:.*[kv]_proj"])],
        {},
        "needs the same transform of the input for all its parts",
    ),
    "a cache of a linear": (
        [turn(["re:.*k_proj"], "k_cache")],
        {},
        "refuses a transform of k_cache",
    ),
    "another place": ([turn(["Linear"], "weights")], {}, 'location: "weights": vLLM 0.32 knows no'),
    "some classes": ([turn(["QKVParallelLinear"])], {}, "some of vLLM's classes of linears"),
    "a pattern that may run away": ([turn(["re:(a+)+b"])], {}, "targets: a pattern"),
    "no list": ([turn(7)], {}, "targets: 7 is not a list of strings"),
    "no object": (["x"], {}, 'apply: "x" is not an object'),
    "a size that is none": ([turn(["Linear"])], {"head_dim": -1}, "head_dim: -1 is not a whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_refuses_is_refused_with_the_config(case: str) -> None:
    apply, scheme, said = REFUSED[case]
    with pytest.raises(ModelError) as error:
        model(*apply, **scheme).weight_bytes(ONE, 0)
    assert said in str(error.value)
    assert str(error.value).startswith("config.json: quantization_config: transform_config")


def test_tensor_parallelism_is_refused_as_by_vllm() -> None:
    two = Deployment(ParallelLayout(tp=2))
    with pytest.raises(PlanError, match=r"tp = 2: vLLM 0\.32 refuses transforms of activations"):
        model(turn(["re:.*down_proj"])).weight_bytes(two, 0)
    assert model(turn(["Linear"], "weight_input")).weight_bytes(two, 0).total > 0


def test_a_linear_with_a_bias_is_refused() -> None:
    with pytest.raises(LayerShardError, match="no transform of a linear with a bias"):
        model(turn(["re:.*self_attn.*"]), name="zai-org--GLM-4.7").weight_bytes(ONE, 0)
