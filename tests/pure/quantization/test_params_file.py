"""params.json of Mistral's own format, which vLLM reads before config.json.

Source: vLLM 0.32, transformers_utils/config.py, `get_config`; configs/mistral.py. vLLM's own reader
is asked in tests/vllm/truth/test_truth_stated.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broken import write_raw
from hub_server import COMMIT, NAME, Handler, serving
from sums import fp8_rows, fp8_tensor, total
from tests.pure.quantization.test_field_cases import tensors
from vllm_layershard import Layout, plan_model
from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models import Deployment, find, read_model
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


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Places of one repository, and the name to read it by."""
    snapshot = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)

    class Here(Handler):
        root, manners, elsewhere, seen = tmp_path / "served", "", "", []

    Here.root.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for address in serving(Here):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield {"cache": snapshot, "hub": Here.root, "directory": tmp_path / "directory"}


def asked(place: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    if place == "hub":
        monkeypatch.setenv("HF_HUB_CACHE", str(sources["hub"]))
    return str(sources[place]) if place == "directory" else NAME


@pytest.mark.parametrize("place", ["directory", "cache", "hub"])
@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "LlamaForCausalLM"])
def test_every_source_reads_it_where_weights_of_its_format_are(
    place: str, architecture: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source: vLLM 0.32, transformers_utils/repo_utils.py, `is_mistral_model_repo`."""
    sources[place].mkdir(exist_ok=True)
    more = {"architectures": [architecture], "model_type": architecture[:-11].lower()}
    write(sources[place], PARAMS | {"quantization": FP8}, **more)
    name = asked(place, sources, monkeypatch)
    assert read_model(name).quantization == "fp8_tensor"
    (sources[place] / "consolidated.safetensors").rename(sources[place] / "model.safetensors")
    if place == "cache":  # vLLM asks the Hub, which may have them
        with pytest.raises(ModelError, match="does not tell whether the model has them"):
            read_model(name)
    else:
        assert read_model(name).quantization == "none"


@pytest.mark.parametrize("place", ["directory", "cache"])
def test_without_any_weights_its_quantisation_is_refused(
    place: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources[place].mkdir(exist_ok=True)
    write(sources[place], PARAMS | {"quantization": FP8}, weights="tokenizer.json")
    with pytest.raises(ModelError, match=r"params\.json: quantization: .*download its weights"):
        read_model(asked(place, sources, monkeypatch))
    write(sources[place], PARAMS, weights="tokenizer.json")
    assert read_model(asked(place, sources, monkeypatch)).quantization == "none"


def test_a_cache_without_it_and_without_weights_has_a_note(sources: dict[str, Path]) -> None:
    write(sources["cache"], PARAMS, weights="tokenizer.json")
    (sources["cache"] / "params.json").unlink()
    (note,) = find(NAME).notes
    assert "neither weights nor params.json" in note
    (sources["cache"] / "model.safetensors").write_bytes(b"")
    assert find(NAME).notes == ()


def test_a_hub_that_does_not_list_its_files_is_no_proof(
    sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sources["hub"], PARAMS | {"quantization": FP8})
    name = asked("hub", sources, monkeypatch)
    monkeypatch.setattr("hub_server.LISTS", [])
    with pytest.raises(UnknownModelError):
        read_model(name)


def test_in_a_directory_vllm_looks_for_weights_of_its_format(tmp_path: Path) -> None:
    params = PARAMS | {"quantization": FP8, "dim": 1}
    path = write(tmp_path, params, weights="model.safetensors")
    assert read_model(path).quantization == "none"


def test_its_own_quantization_config_is_read(tmp_path: Path) -> None:
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    assert read_model(write(tmp_path, PARAMS | {"quantization_config": stated})).quantization == (
        "fp8_tensor"
    )


def test_what_config_json_leaves_out_it_says(tmp_path: Path) -> None:
    write(tmp_path, PARAMS | {"head_dim": 256, "max_position_embeddings": 4096, "max_seq_len": 99})
    config = {k: v for k, v in CONFIG.items() if k not in ("head_dim", "intermediate_size")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model(str(tmp_path))
    assert model.kv_bytes_per_token("auto", range(1), Deployment(ParallelLayout())) == (
        2 * 8 * 256 * 2
    )
    assert model.blueprint.longest == 99


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("nothing", [None, {}])
def test_a_null_does_not_hide_what_config_json_states(
    key: str, nothing: object, tmp_path: Path
) -> None:
    stated: dict[str, Any] = {key: {"quant_method": "fp8", "activation_scheme": "dynamic"}}
    path = write(tmp_path, PARAMS | {key: nothing}, **stated)
    with pytest.raises(ModelError) as error:
        read_model(path)
    message = str(error.value)
    assert f"{path}/params.json: {key}: is {json.dumps(nothing)}" in message
    assert f"{path}/config.json has" in message
    assert "take the key out of params.json" in message
    path = write(tmp_path, PARAMS | {key: nothing, "quantization": ROWS}, **stated)
    assert read_model(path).quantization == "compressed_tensors_fp8_channel"
    assert read_model(write(tmp_path, PARAMS | {key: None})).quantization == "none"


def test_its_section_counts_beside_a_text_config_too(tmp_path: Path) -> None:
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    path = write(tmp_path, PARAMS | {"quantization_config": stated}, text_config={})
    assert read_model(path).quantization == "fp8_tensor"


INDEX = "consolidated.safetensors.index.json"


@pytest.mark.parametrize("place", ["directory", "cache"])
def test_an_index_of_its_weights_says_that_the_model_has_them(
    place: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources[place].mkdir(exist_ok=True)
    write(sources[place], PARAMS | {"quantization": FP8}, weights=INDEX)
    name = asked(place, sources, monkeypatch)
    assert read_model(name).quantization == "fp8_tensor"
    write(sources[place], PARAMS, weights=INDEX, quantization_config=ROWS)
    assert read_model(name).quantization == "compressed_tensors_fp8_channel"


@pytest.mark.parametrize("place", ["directory", "hub"])
def test_where_all_files_are_there_its_index_alone_is_not_enough(
    place: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM looks for the weights themselves, and finds others."""
    sources[place].mkdir(exist_ok=True)
    write(sources[place], PARAMS | {"quantization": FP8}, weights=INDEX)
    (sources[place] / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert read_model(asked(place, sources, monkeypatch)).quantization == "none"


WINDOWS: dict[str, tuple[Any, list[int | None]]] = {
    "number": (1024, [1024] * 32),
    "list": ([None, 1024, 1024, 1024], [None, 1024, 1024, 1024] * 8),
    "nulls": ([None], [None] * 32),
    "zero": (0, [None] * 32),
    "null": (None, [None] * 32),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_its_windows_are_those_of_its_layers(case: str, tmp_path: Path) -> None:
    stated, expected = WINDOWS[case]
    path = write(tmp_path, PARAMS | {"sliding_window": stated}, sliding_window=77)
    layers = read_model(path).blueprint.layers
    assert [layer[0].attention.window for layer in layers] == expected


def test_it_is_planned_without_a_config_json(tmp_path: Path) -> None:
    """As vLLM's reader builds it: no window, and 128,000 tokens, where it says nothing of them."""
    path = write(tmp_path, PARAMS | {"dtype": "bfloat16", "quantization": FP8})
    beside = nbytes(path)
    (tmp_path / "config.json").unlink()
    model = read_model(path)
    assert (nbytes(path), model.quantization, model.architecture) == (
        beside,
        "fp8_tensor",
        "MistralForCausalLM",
    )
    assert model.blueprint.longest == 128_000
    assert {layer[0].attention.window for layer in model.blueprint.layers} == {None}
    weights = (tmp_path / "consolidated.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(UnknownModelError, match=r"holds no config\.json"):
        read_model(path)
    weights.unlink()
    assert nbytes(path) == beside


@pytest.mark.parametrize("place", ["cache", "hub"])
def test_it_is_planned_so_from_a_repository(
    place: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sources[place], PARAMS | {"quantization": FP8})
    (sources[place] / "config.json").unlink()
    name = asked(place, sources, monkeypatch)
    assert read_model(name).quantization == "fp8_tensor"
    (sources[place] / "consolidated.safetensors").rename(sources[place] / "model.safetensors")
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        read_model(name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"moe": {"num_experts": 8}}, "moe: is planned with a config.json beside it only"),
        ({"vision_encoder": {"hidden_size": 64}}, "vision_encoder: is planned with"),
        ({"qk_nope_head_dim": 128}, "qk_nope_head_dim: vLLM 0.32 builds another class"),
        ({"hidden_dim": None}, "hidden_dim: is missing"),
    ],
)
def test_alone_it_is_refused_where_another_class_is_built(
    more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, PARAMS | more)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert message in str(error.value)


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
        (PARAMS | {"weight_bits": 4}, "weight_bits: 4 speaks of a quantisation"),
        (PARAMS | {"sliding_window": [8, 9]}, "vLLM 0.32 takes one size"),
        (PARAMS | {"sliding_window": [None, 8, 8]}, "as many entries as go into 32 layers"),
        (PARAMS | {"sliding_window": "8"}, "vLLM 0.32 takes a number, or a list alone"),
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


def test_shared_experts_make_another_class(tmp_path: Path) -> None:
    moe = {"num_experts": 8, "num_shared_experts": 1}
    path = write(tmp_path, PARAMS | {"moe": moe}, num_local_experts=8)
    with pytest.raises(ModelError, match=r"moe: vLLM 0\.32 builds MistralLarge3ForCausalLM"):
        read_model(path)


def test_experts_of_another_number_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, PARAMS | {"moe": {"num_experts": 16}}, num_local_experts=8)
    with pytest.raises(
        ModelError, match=r"moe\.num_experts: is 16, and config\.json has experts 8"
    ):
        read_model(path)


@pytest.mark.parametrize("beside", [False, True])
def test_weights_of_its_format_that_are_stored_quantised_are_refused(
    beside: bool, tmp_path: Path
) -> None:
    """Their headers say what no config does; those of the usual format are not the ones loaded."""
    path = write(tmp_path, PARAMS)
    name = "layers.0.attention.wq.weight"
    stored = {"dtype": "F8_E4M3", "shape": [16, 16], "data_offsets": [0, 256]}
    write_raw(tmp_path / "consolidated.safetensors", json.dumps({name: stored}).encode(), 256)
    if beside:
        write_raw(tmp_path / "model.safetensors", b"{}", 0)
    with pytest.raises(ModelError, match=f"{name} is stored as F8_E4M3"):
        plan_model(path, layout=Layout(dp=2))
