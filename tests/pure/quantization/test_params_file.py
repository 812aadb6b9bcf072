"""params.json of Mistral's own format, which vLLM reads before config.json.

Source: vLLM 0.32, transformers_utils/config.py, `get_config`; configs/mistral.py. vLLM's own reader
is asked in tests/vllm/truth/test_truth_stated.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sums import fp8_rows, fp8_tensor, total
from tests.pure.quantization.test_field_cases import tensors
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
    "sliding_window": None,
}
PARAMS: dict[str, Any] = {
    "dim": 4096,
    "n_layers": 32,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
}
FP8 = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
ROWS = {
    "quant_method": "compressed_tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "0": {
            "targets": ["Linear"],
            "weights": tensors(8, "channel"),
            "input_activations": TOKENS,
        }
    },
}


def write(
    place: Path, params: Any, *, weights: str = "consolidated.safetensors", **more: Any
) -> str:
    (place / "config.json").write_text(json.dumps(CONFIG | more))
    (place / "params.json").write_text(params if isinstance(params, str) else json.dumps(params))
    (place / weights).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return str(place)


def nbytes(path: str) -> int:
    return read_model(path).weight_bytes(Deployment(ParallelLayout()), 0).total


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated-00001-of-2.safetensors"]
)
@pytest.mark.parametrize(
    ("scheme", "scales"), [("TENSOR", "static"), (None, "static"), ("NO_SCALES", "dynamic")]
)
def test_its_fp8_is_counted(name: str, scheme: str | None, scales: str, tmp_path: Path) -> None:
    stated = {"qformat_weight": "fp8_e4m3", "qscheme_act": scheme}
    path = write(tmp_path, PARAMS | {"quantization": stated}, weights=name)
    model = read_model(path)
    assert model.quantization == "fp8_tensor"
    inputs = [t for x in model.linears(Deployment(ParallelLayout())) for t in x.tensors
              if t.name == "input_scale"]  # fmt: skip
    assert bool(inputs) == (scales == "static")
    expected = total(
        CONFIG | {"model_type": "llama"}, lambda m: None if m.name == "lm_head" else fp8_tensor(m)
    )
    assert nbytes(path) == pytest.approx(expected, rel=1e-6)


def test_its_compressed_tensors_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, PARAMS | {"quantization": ROWS})
    expected = total(
        CONFIG | {"model_type": "llama"}, lambda m: None if m.name == "lm_head" else fp8_rows(m)
    )
    assert nbytes(path) == pytest.approx(expected, rel=1e-6)


def test_what_it_leaves_out_config_json_says(tmp_path: Path) -> None:
    """Source: `MistralConfigParser.parse`: config.json's keys are the defaults."""
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    assert read_model(write(tmp_path, PARAMS)).quantization == "none"
    path = write(tmp_path, PARAMS, quantization_config=stated)
    assert read_model(path).quantization == "fp8_tensor"
    path = write(tmp_path, PARAMS | {"quantization": ROWS}, quantization_config=stated)
    assert read_model(path).quantization == "compressed_tensors_fp8_channel"


def test_without_weights_of_its_format_it_is_not_read(tmp_path: Path) -> None:
    params = PARAMS | {"quantization": FP8, "dim": 1}
    path = write(tmp_path, params, weights="model.safetensors")
    assert read_model(path).quantization == "none"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (PARAMS | {"dim": 5120}, "dim: is 5120, and config.json has hidden_size 4096"),
        (PARAMS | {"n_layers": 40}, "n_layers: is 40, and config.json has num_hidden_layers 32"),
        (PARAMS | {"n_kv_heads": 32}, "n_kv_heads: is 32"),
        (PARAMS | {"vocab_size": 131_072}, "vocab_size: is 131072"),
        (PARAMS | {"tied_embeddings": True}, "tied_embeddings: is true"),
        (PARAMS | {"moe": {"num_experts": 8}}, "moe: is true"),
        (PARAMS | {"quantization": {"qformat_weight": "int4"}}, "vLLM 0.32 has no class for it"),
        (PARAMS | {"quantization": FP8 | {"qscheme_act": "ROW"}}, "vLLM 0.32 takes TENSOR or"),
        (PARAMS | {"quantization": "fp8"}, "quantization"),
        ("{", "params.json"),
    ],
    ids=str,
)
def test_what_vllm_would_read_otherwise_is_refused(
    params: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        nbytes(write(tmp_path, params))
    assert message in str(error.value)
    assert "params.json" in str(error.value)
