"""Caches that ModelSlim's descriptions state, in the bytes that vllm-ascend keeps of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import ENDS
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, Model, cache_name, read_model
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

DENSE, LATENT, HYBRID, DRAFTS, SPARSE = (
    "Qwen--Qwen3-32B",
    "deepseek-ai--DeepSeek-V3",
    "Qwen--Qwen3-Next-80B-A3B-Instruct",
    "zai-org--GLM-4.7",
    "deepseek-ai--DeepSeek-V3.2",
)
Keys = dict[str, Any]


def described(directory: Path, name: str, keys: Keys) -> Model:
    """A model whose description states FLOAT of every weight, and these keys."""
    config = json.loads((_BUNDLED / f"{name}.json").read_text()) | {"quantization_config": None}
    (directory / "config.json").write_text(json.dumps(config))
    model = read_model(str(directory))
    fused = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
        "wk_weights_proj": ("wk", "weights_proj"),
    }
    names: list[str] = [*ENDS]
    for module in model.blueprint.modules():
        stem, _, last = module.rpartition(".")
        names += [f"{stem}.{part}" for part in fused.get(last, (last,))]
        names += [f"{module}.0.gate_proj"] * (last == "experts")
    stated = {f"{name}.weight": "FLOAT" for name in names} | {"version": "1.0.0"} | keys
    (directory / DESCRIPTION).write_text(json.dumps(stated))
    return read_model(str(directory))


def scales(layers: Iterable[int]) -> Keys:
    """As ModelSlim states the scales and offsets of keys and values."""
    return {
        f"model.layers.{i}.self_attn.{part}_proj.kv_cache_{leaf}": "C8"
        for i in layers
        for part in "kv"
        for leaf in ("scale", "offset")
    }


def c8(layers: Iterable[int]) -> Keys:
    return {"kv_cache_type": "C8"} | scales(layers)


def token(model: Model, dtype: str = "auto", tp: int = 1) -> int:
    deployment = Deployment(ParallelLayout(tp=tp))
    return model.kv_bytes_per_token(dtype, range(model.num_layers), deployment)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize("tp", [1, 4])
def test_keys_and_values_in_c8_take_a_byte_each(dtype: str, tp: int, tmp_path: Path) -> None:
    """vllm-ascend sets the dtype of each such layer, whatever cache is asked for."""
    model = described(tmp_path, DENSE, c8(range(64)))
    assert token(model, dtype, tp) == 64 * 2 * (8 // tp) * 128
    assert cache_name(model, dtype) == "int8"
    assert model.cache_tokens(1 << 30, dtype, range(64), Deployment(ParallelLayout())) == 8192
    assert any("kv_cache_type C8: int8" in note for note in model.notes)


@pytest.mark.parametrize("layers", [range(1), range(0, 64, 2), range(60)])
def test_layers_without_a_scale_stay_wide(layers: range, tmp_path: Path) -> None:
    model = described(tmp_path, DENSE, c8(layers))
    assert token(model) == (64 * 2 - len(layers)) * 2 * 8 * 128
    assert cache_name(model, "auto") == "bfloat16"


def test_of_a_hybrid_the_attentions_count(tmp_path: Path) -> None:
    attentions = range(3, 48, 4)
    model = described(tmp_path, HYBRID, c8(attentions))
    assert token(model) == 12 * 2 * 2 * 256
    assert cache_name(model, "auto") == "int8"


@pytest.mark.parametrize("drafts", [0, 1])
def test_the_draft_layer_has_the_layer_after_the_last(drafts: int, tmp_path: Path) -> None:
    model = described(tmp_path, DRAFTS, c8(range(92 + drafts)))._replace(drafted=1)
    assert token(model) == (92 + (1 if drafts else 2)) * 2 * 8 * 128


@pytest.mark.parametrize(
    ("name", "keys", "bytes_per_token"),
    [
        (DENSE, {}, 64 * 2 * 8 * 128 * 2),
        (DENSE, {"kv_cache_type": "FLOAT", "kv_quant_type": None}, 64 * 2 * 8 * 128 * 2),
        (LATENT, {"fa_quant_type": None}, 61 * 576 * 2),
    ],
)
def test_no_quantised_cache_is_the_models_dtype(
    name: str, keys: Keys, bytes_per_token: int, tmp_path: Path
) -> None:
    model = described(tmp_path, name, keys)
    assert token(model) == bytes_per_token
    assert [note for note in model.notes if "model's dtype" in note] == []


FA = {"model.layers.3.self_attn.fa_k.scale": "FAQuant"}
INDEXER = {"model.layers.3.self_attn.indexer.quant_type": "INT8_DYNAMIC"}


@pytest.mark.parametrize(
    ("name", "keys", "noted"),
    [
        (LATENT, FA | {"fa_quant_type": "FAKQuant"}, "fa_quant_type: counted in the model's dtype"),
        (LATENT, {"fa_quant_type": "FAQuant"}, "fa_quant_type: counted"),
        (SPARSE, INDEXER | {"indexer_quant_type": "INT8_DYNAMIC"}, "indexer_quant_type: counted"),
        (DENSE, {"kv_cache_type": "C8"}, 'kv_cache_type "C8": counted in the model'),
        (LATENT, {"kv_cache_type": "C4"}, 'kv_cache_type "C4": counted in the model'),
        (DENSE, {"kv_quant_type": "C8"}, 'kv_quant_type "C8": counted in the model'),
        (SPARSE, INDEXER, "indexer.quant_type: counted in the model's dtype"),
    ],
)
def test_what_a_server_by_itself_keeps_wide_is_said(
    name: str, keys: Keys, noted: str, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    model = described(tmp_path, name, keys)
    assert token(model) == token(described(tmp_path / "plain", name, {}))
    assert len([note for note in model.notes if noted in note]) == 1


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (LATENT, c8(range(61)), "kv_cache_type: is C8, keys .* MLA keeps none"),
        (DENSE, scales(range(64)), "kv_cache_type: is .*, and scales of keys are stated"),
        (DENSE, scales([7]) | {"kv_cache_type": "C4"}, "kv_cache_type: is .C4.* has C8 alone"),
        (DENSE, scales([7]) | {"kv_quant_type": "C8"}, "kv_cache_type: is .*, and scales of keys"),
        (LATENT, FA | {"fa_quant_type": "FAQuant"}, "fa_quant_type: .FAQuant.: .* no class"),
        (
            SPARSE,
            {"indexer_quant_type": "X", "model.layers.0.self_attn.indexer.quant_type": "MXFP4"},
            "indexer_quant_type: .MXFP4.: vllm-ascend has no class for it",
        ),
    ],
)
def test_what_nobody_has_a_class_for_is_refused(
    name: str, keys: Keys, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        described(tmp_path, name, keys)


@pytest.mark.parametrize("value", [{}, {"kinds": {}}, [], "a", {"caches": []}])
def test_a_config_cannot_describe_itself(value: object, tmp_path: Path) -> None:
    """What a description says is read from its file alone."""
    stated = {"quant_method": "ascend", "described": value, "kinds": value, "caches": value}
    config = json.loads((_BUNDLED / f"{DENSE}.json").read_text()) | {"quantization_config": stated}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"'ascend' needs {DESCRIPTION}"):
        read_model(str(tmp_path))
