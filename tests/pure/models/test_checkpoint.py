"""The plan beside the stored tensors: what agrees, what may differ, and what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints import deepseek, header_of, small_config, write
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, find, model_of, read_model
from vllm_layershard.models.checkpoint.compare import compare
from vllm_layershard.models.checkpoint.comparison import Comparison
from vllm_layershard.models.checkpoint.files import Checkpoint
from vllm_layershard.models.checkpoint.safetensors import DTYPE_BITS, Stored
from vllm_layershard.models.checkpoint.stored import evidence_for
from vllm_layershard.models.checkpoint.transforms import TORCH_DTYPES, TRANSFORMS
from vllm_layershard.models.sources import source
from vllm_layershard.plan import ParallelLayout

Tensors = dict[str, tuple[str, Sequence[int]]]
ROOT = Path(__file__).parents[3]
FP8: dict[str, object] = {
    "q_lora_rank": 128,
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
    "first_k_dense_replace": 1,
}


def compared(place: Path, config: dict[str, object], tensors: Tensors) -> Comparison:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    write(place, tensors, shards=3)
    found = find(str(place))
    evidence, _ = evidence_for(found, model_of(found), False, lambda done, total: None)
    assert evidence.comparison is not None
    return evidence.comparison


def bundled(name: str, **changes: object) -> dict[str, object]:
    path = source._BUNDLED / f"{name.replace('/', '--')}.json"
    return {**json.loads(path.read_text()), **changes}


@pytest.mark.parametrize("changes", [{}, FP8, {"torch_dtype": "float16"}])
def test_a_published_layout_agrees(tmp_path: Path, changes: dict[str, object]) -> None:
    config = small_config(**changes)
    tensors = deepseek(config)
    found = compared(tmp_path, config, tensors)
    assert found.disagreements == ()
    assert found.checkpoint.nbytes == header_of(tensors)[1]
    draft = {k: v for k, v in tensors.items() if k.startswith("model.layers.9.")}
    assert found.draft_bytes == header_of(draft)[1]
    parts = ("gate_proj", "up_proj", "down_proj")
    for prefix in ("model.layers.0.mlp", "model.layers.8.mlp.shared_experts"):
        wanted = {
            k: v for k, v in tensors.items() if k.startswith(tuple(f"{prefix}.{p}." for p in parts))
        }
        said = found.stored_bytes([f"{prefix}.gate_up_proj", f"{prefix}.down_proj"])
        assert said == header_of(wanted)[1]


def test_deepseek_v3_in_full() -> None:
    """61 layers, 92,000 tensors: every linear of the planner agrees with the published names."""
    config = bundled("deepseek-ai/DeepSeek-V3")
    stored = {
        name: Stored(name, dtype, tuple(shape), 0)
        for name, (dtype, shape) in deepseek(config).items()
    }
    model = read_model("DeepSeek-V3")
    linears = model.linears(Deployment(ParallelLayout()))
    assert compare(linears, model.num_layers, Checkpoint(("all",), stored)).disagreements == ()


def reshape(name: str, dtype: str, shape: list[int]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        assert name in tensors
        tensors[name] = (dtype, shape)

    return change


def without(start: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        gone = [name for name in tensors if name.startswith(start)]
        assert gone
        for name in gone:
            del tensors[name]

    return change


def with_one(name: str, dtype: str, shape: list[int]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = (dtype, shape)

    return change


WRONG: dict[str, tuple[Callable[[Tensors], None], list[str]]] = {
    "a shape": (
        reshape("model.layers.3.self_attn.o_proj.weight", "BF16", [256, 64]),
        [
            "model.layers.3.self_attn.o_proj.weight: expected bfloat16 [256, 128], "
            "stored BF16 [256, 64]"
        ],
    ),
    "rows and columns the other way round": (
        reshape("model.layers.3.self_attn.o_proj.weight", "BF16", [128, 256]),
        [
            "model.layers.3.self_attn.o_proj.weight: expected bfloat16 [256, 128], "
            "stored BF16 [128, 256]"
        ],
    ),
    "a part of a fused linear": (
        reshape("model.layers.0.mlp.up_proj.weight", "BF16", [500, 256]),
        [
            "model.layers.0.mlp.gate_up_proj.weight: expected bfloat16 [1024, 256], "
            "stored BF16 [512, 256] + BF16 [500, 256]"
        ],
    ),
    "a part that is not there": (
        without("model.layers.0.mlp.up_proj."),
        [
            "model.layers.0.mlp.gate_up_proj.weight: expected bfloat16 [1024, 256], "
            "stored only model.layers.0.mlp.gate_proj.weight BF16 [512, 256]"
        ],
    ),
    "another precision": (
        reshape("model.layers.3.self_attn.o_proj.weight", "I32", [256, 128]),
        [
            "model.layers.3.self_attn.o_proj.weight: expected bfloat16 [256, 128], "
            "stored I32 [256, 128]"
        ],
    ),
    "a bias that nobody speaks of": (
        with_one("model.layers.3.self_attn.o_proj.bias", "BF16", [256]),
        ["model.layers.3.self_attn.o_proj.bias: expected nothing, stored BF16 [256]"],
    ),
    "a linear that is not there": (
        without("model.layers.3.self_attn.o_proj."),
        ["model.layers.3.self_attn.o_proj: expected bfloat16 [256, 128], stored nothing"],
    ),
    "a layer too many": (
        with_one("model.layers.12.self_attn.o_proj.weight", "BF16", [256, 128]),
        [
            "model.layers.12.self_attn.o_proj.weight: expected no layer beyond 8, "
            "stored a layer the config lacks"
        ],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_disagrees_is_said(tmp_path: Path, what: str) -> None:
    change, expected = WRONG[what]
    tensors = deepseek(small_config())
    change(tensors)
    found = compared(tmp_path, small_config(), tensors)
    assert [str(one) for one in found.disagreements] == expected


def test_one_file_is_one(tmp_path: Path) -> None:
    found = compared(tmp_path, small_config(), deepseek(small_config()))
    assert " bytes in 3 files; " in found.said
    alone = replace(found, checkpoint=Checkpoint(("model.safetensors",), found.checkpoint.tensors))
    assert " bytes in 1 file; " in alone.said


def test_a_missing_layer(tmp_path: Path) -> None:
    tensors = deepseek(small_config())
    without("model.layers.5.")(tensors)
    found = compared(tmp_path, small_config(), tensors)
    assert {one.tensor.split(".")[2] for one in found.disagreements} == {"5"}
    assert len(found.disagreements) == 8  # its routed experts, too


def test_scales_that_are_not_there(tmp_path: Path) -> None:
    config = small_config(**FP8)
    tensors = deepseek(config)
    del tensors["model.layers.3.self_attn.o_proj.weight_scale_inv"]
    found = compared(tmp_path, config, tensors)
    assert [str(one) for one in found.disagreements] == [
        "model.layers.3.self_attn.o_proj.weight_scale_inv: expected float32 [2, 1], stored nothing"
    ]


@pytest.mark.parametrize("linear", ["self_attn.o_proj", "self_attn.q_a_proj", "mlp.gate"])
@pytest.mark.parametrize("leaf", ["weight_scale_inv", "weight_scale", "scales", "g_idx"])
def test_a_scale_where_the_config_says_nothing_of_it(
    tmp_path: Path, linear: str, leaf: str
) -> None:
    """Beside weights that are not quantised: of one layer, in a quantised model or in another.

    An activation order is left unread in every quantised model.
    """
    name = f"model.layers.6.{linear}"
    plain = deepseek(small_config())
    plain[f"{name}.{leaf}"] = ("F32", [2, 1])
    with pytest.raises(ModelError, match=f"{name}.{leaf} is stored, as beside a quantised weight"):
        compared(tmp_path / "plain", small_config(), plain)
    section = {**FP8["quantization_config"], "modules_to_not_convert": [name]}
    config = small_config(**FP8 | {"quantization_config": section})
    parts = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
    names = [f"model.layers.6.{part}" for part in parts] if linear in parts else [name]
    section["modules_to_not_convert"] = names
    tensors = deepseek(config)
    for each in names:
        tensors[f"{each}.weight"] = ("BF16", tensors[f"{each}.weight"][1])
        tensors.pop(f"{each}.weight_scale_inv", None)
    assert compared(tmp_path / "mixed", config, tensors).disagreements == ()
    tensors[f"{name}.{leaf}"] = ("F32", [2, 1])
    found = compared(tmp_path / "mixed", config, tensors)
    said = [f"{name}.{leaf}: expected nothing, stored F32 [2, 1]"] if leaf != "g_idx" else []
    assert [str(one) for one in found.disagreements] == said


@pytest.mark.parametrize(
    "name", ["lm_head.weight_scale", "model.embed_tokens.weight_scale_inv", "visual.proj.scales"]
)
def test_a_scale_anywhere_contradicts_that_nothing_is_quantised(tmp_path: Path, name: str) -> None:
    tensors = deepseek(small_config()) | {name: ("F32", [1])}
    with pytest.raises(ModelError, match=f"is missing, and {name} is stored, as beside"):
        compared(tmp_path, small_config(), tensors)


def test_every_tensor_of_the_layers_too_many_is_counted(tmp_path: Path) -> None:
    tensors = deepseek(small_config())
    config = small_config(num_hidden_layers=6, num_nextn_predict_layers=0)
    beyond = [name for name in tensors if re.match(r"model\.layers\.[678]\.", name)]
    kept = {name: tensor for name, tensor in tensors.items() if "layers.9." not in name}
    found = compared(tmp_path, config, kept)
    assert len(beyond) > 60
    assert sorted(one.tensor for one in found.disagreements) == sorted(beyond)
    assert f"disagree on {len(beyond)}" in found.said


def test_an_unquantised_checkpoint_with_a_quantised_config(tmp_path: Path) -> None:
    tensors = deepseek(small_config(q_lora_rank=128))
    plain = {name: t for name, t in tensors.items() if ".experts." not in name}
    found = compared(tmp_path, small_config(**FP8), plain)
    assert len(found.disagreements) > 9
    with pytest.raises(ModelError, match=r"layer 4: .* the files store .* as BF16 \[128, 256\]"):
        compared(tmp_path, small_config(**FP8), tensors)


def test_float32_is_converted_while_loading(tmp_path: Path) -> None:
    tensors = {name: ("F32", shape) for name, (_, shape) in deepseek(small_config()).items()}
    assert compared(tmp_path, small_config(), tensors).disagreements == ()


def test_names_under_a_language_model(tmp_path: Path) -> None:
    tensors = {f"language_model.{name}": t for name, t in deepseek(small_config()).items()}
    found = compared(tmp_path, small_config(), tensors)
    assert found.disagreements == ()
    assert found.draft_bytes > 0


def test_the_indexers_key_may_be_quantised_on_disk(tmp_path: Path) -> None:
    config = bundled("deepseek-ai/DeepSeek-V3.2", num_hidden_layers=2, **SIZES)
    tensors = deepseek(config)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.indexer"
        tensors[f"{name}.wk.weight"] = ("F8_E4M3", [128, 256])
        tensors[f"{name}.wk.weight_scale_inv"] = ("F32", [1, 2])
        tensors[f"{name}.weights_proj.weight"] = ("BF16", [64, 256])
        tensors[f"{name}.wq_b.weight"] = ("F8_E4M3", [64 * 128, 1536])
        tensors[f"{name}.wq_b.weight_scale_inv"] = ("F32", [64, 12])
    assert compared(tmp_path, config, tensors).disagreements == ()


def grouped(
    layers: int, name: str, query: int, key: int, hidden: int, biases: bool = False
) -> Tensors:
    tensors: Tensors = {}
    for layer in range(layers):
        stem = f"model.layers.{layer}.{name}"
        for part, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            tensors[f"{stem}.{part}.weight"] = ("BF16", [rows, hidden])
            if biases:
                tensors[f"{stem}.{part}.bias"] = ("BF16", [rows])
        tensors[f"{stem}.o_proj.weight"] = ("BF16", [hidden, query])
        if biases:
            tensors[f"{stem}.o_proj.bias"] = ("BF16", [hidden])
    return tensors


def test_a_checkpoint_with_grouped_queries_agrees_with_the_plan(tmp_path: Path) -> None:
    config = bundled("meta-llama/Meta-Llama-3.1-8B", num_hidden_layers=2)
    tensors = grouped(2, "self_attn", 4096, 1024, 4096)
    for layer in range(2):
        for part, shape in (
            ("gate_proj", [14336, 4096]),
            ("up_proj", [14336, 4096]),
            ("down_proj", [4096, 14336]),
        ):
            tensors[f"model.layers.{layer}.mlp.{part}.weight"] = ("BF16", shape)
    assert compared(tmp_path, config, tensors).disagreements == ()


def test_an_attention_that_vllm_renames(tmp_path: Path) -> None:
    """gpt-oss: `self_attn` on disk, `attn` in vLLM."""
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "vocab_size": 512,
        "torch_dtype": "bfloat16",
    }
    tensors = grouped(2, "self_attn", 64, 32, 64, biases=True)
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.router.weight"] = ("BF16", [4, 64])
        tensors[f"model.layers.{layer}.mlp.router.bias"] = ("BF16", [4])
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = ("BF16", [4, 64, 128])
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj_bias"] = ("BF16", [4, 128])
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = ("BF16", [4, 64, 64])
        tensors[f"model.layers.{layer}.mlp.experts.down_proj_bias"] = ("BF16", [4, 64])
    assert compared(tmp_path, config, tensors).disagreements == ()


def test_a_cache_with_a_part_of_the_files_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    (snapshot / "config.json").write_text(json.dumps(small_config()))

    found = find("some/model")
    model = model_of(found)
    evidence, notes = evidence_for(found, model, False, lambda done, total: None)
    assert (evidence.revision, evidence.comparison, notes) == ("0123456789abcdef", None, ())

    write(snapshot, deepseek(small_config()), shards=2)
    evidence, notes = evidence_for(found, model, False, lambda done, total: None)
    assert evidence.headers == "cache:some/model@0123456789ab"
    assert evidence.comparison is not None
    assert notes == ()

    (snapshot / "model-00001-of-00002.safetensors").unlink()
    evidence, (note,) = evidence_for(found, model, False, lambda done, total: None)
    assert evidence.comparison is None
    assert "1 of 2 files of the checkpoint are missing" in note


def test_every_dtype_of_the_format_has_a_name_in_torch_or_none_that_is_planned() -> None:
    assert set(DTYPE_BITS) - set(TORCH_DTYPES) == {"F4", "F6_E2M3", "F6_E3M2", "C64"}


def test_the_documentation_shows_the_table_of_transforms() -> None:
    page = (ROOT / "docs" / "planning.md").read_text()
    for row in TRANSFORMS:
        assert f"| {row.what} | {row.on_disk} | {row.at_run_time} |" in page
