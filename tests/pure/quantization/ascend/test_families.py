"""ModelSlim checkpoints of families whose modules it names otherwise than vLLM.

Each variant has sizes, precisions and a spelling of its own. Its bytes are summed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from checkpoints import ENDS
from sums import Matrix, matrices
from truth.stated import QWEN3_5_27B, QWEN3_VL_4B, QWEN3_VL_30B_A3B
from vllm_layershard import ModelError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

RANKS = 8
LAYOUT = Deployment(ParallelLayout(dp=RANKS), ep=True)
STATIC, DYNAMIC, FLOAT = "W8A8", "W8A8_DYNAMIC", "FLOAT"
Config = dict[str, Any]


def bundled(name: str) -> Config:
    return json.loads((_BUNDLED / f"{name}.json").read_text()) | {"quantization_config": None}


MINIMAX = bundled("MiniMaxAI--MiniMax-M2")
KIMI = bundled("moonshotai--Kimi-K2.5")
KIMI["text_config"] = KIMI["text_config"] | {"quantization_config": None}

FAMILIES: dict[str, tuple[Config, tuple[str, ...]]] = {
    "MiniMax-M2": (MINIMAX, ("model.",)),
    "Qwen3-VL": (QWEN3_VL_4B, ("model.language_model.", "language_model.model.")),
    "Qwen3-VL-MoE": (QWEN3_VL_30B_A3B, ("model.language_model.", "language_model.model.")),
    "Qwen3.5": (QWEN3_5_27B, ("model.language_model.", "language_model.model.")),
    "Qwen3.5-MoE": (
        bundled("Qwen--Qwen3.5-397B-A17B"),
        ("model.language_model.", "language_model.model."),
    ),
    "Kimi-K2.5": (KIMI, ("language_model.model.",)),
}
"""The spellings are those that vLLM's mapper of the class takes, each before `layers`."""

FUSED = (
    *(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("in_proj_qkv", "in_proj_z")),
    *(("in_proj_b", "in_proj_a"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w2", "w3")),
)
"""What a server holds as one, and so in one precision."""


def sized(config: Config, dice: Random) -> Config:
    """Another, smaller model of a family."""
    layers = dice.randint(2, 5)
    sizes: Config = {
        "num_hidden_layers": layers,
        "hidden_size": dice.choice((512, 768, 1280)),
        "intermediate_size": dice.choice((512, 1024, 1536)),
        "vocab_size": dice.choice((1024, 4100)),
    }
    wrapped = "text_config" in config
    text = (config["text_config"] if wrapped else config) | sizes
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if key in text:
            text |= {key: RANKS * dice.randint(1, 4), "num_experts_per_tok": 2}
    if "moe_intermediate_size" in text:
        text["moe_intermediate_size"] = dice.choice((256, 512))
    if "n_routed_experts" in text:
        text |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    if "layer_types" in text:
        kinds = ("linear_attention", "full_attention")
        text["layer_types"] = [kinds[i % 2] for i in range(layers)]
    if "full_attention_interval" in text:
        text["full_attention_interval"] = 2
    if "attn_type_list" in text:
        text["attn_type_list"] = [1] * layers
    tied = dice.random() < 0.3 and config is QWEN3_VL_4B
    text["tie_word_embeddings"] = tied
    return config | {"text_config": text, "tie_word_embeddings": tied} if wrapped else text


def parts_of(config: Config) -> Iterator[Matrix]:
    """All that a rank holds, as a checkpoint names it behind the name of the language model."""
    if config["model_type"] == "minimax_m2":
        yield from minimax(config)
        return
    yield from matrices(config["text_config"], RANKS, "model")


def minimax(config: Config) -> Iterator[Matrix]:
    hidden, vocab = config["hidden_size"], -(-config["vocab_size"] // 64) * 64
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    experts, width = config["num_local_experts"], config["intermediate_size"]
    yield Matrix("model.embed_tokens", vocab, hidden, fixed=True)
    yield Matrix("lm_head", vocab, hidden)
    yield Matrix("model.norm", hidden, 1, fixed=True)
    for i in range(config["num_hidden_layers"]):
        attention, moe = f"model.layers.{i}.self_attn", f"model.layers.{i}.block_sparse_moe"
        yield Matrix(f"{attention}.q_proj", queries, hidden)
        yield Matrix(f"{attention}.k_proj", keys, hidden)
        yield Matrix(f"{attention}.v_proj", keys, hidden)
        yield Matrix(f"{attention}.o_proj", hidden, queries)
        yield Matrix(f"{attention}.norms", queries + keys + 2 * hidden, 1, fixed=True)
        yield Matrix(f"{moe}.gate", experts, hidden, fixed=True, element=4)
        yield Matrix(f"{moe}.bias", experts, 1, fixed=True, element=4)
        for name, shape in {"w1": (width, hidden), "w3": (width, hidden)}.items():
            yield Matrix(f"{moe}.experts.0.{name}", *shape, copies=experts // RANKS)
        yield Matrix(f"{moe}.experts.0.w2", hidden, width, copies=experts // RANKS)


def chosen(dice: Random) -> Callable[[str], str]:
    """A precision for each linear by its last name; experts are dynamic or plain."""
    drawn: dict[str, str] = {}

    def precision(name: str) -> str:
        last = name.rpartition(".")[2]
        key = next((group[0] for group in FUSED if last in group), last)
        if ".experts." in name:
            return drawn.setdefault("experts", dice.choice((DYNAMIC, DYNAMIC, FLOAT)))
        if last == "kv_b_proj":  # vllm-ascend asserts it
            return FLOAT
        return drawn.setdefault(key, dice.choice((STATIC, DYNAMIC, DYNAMIC, FLOAT)))

    return precision


def held(matrix: Matrix, precision: str) -> float:
    """Bytes after loading. What a static activation needs, a fused linear has once.

    Source: vllm-ascend 182b75e, quantization/methods/w8a8_static.py and w8a8_dynamic.py.
    """
    rows, inner, last = matrix.rows, matrix.inner, matrix.name.rpartition(".")[2]
    if matrix.fixed or precision == FLOAT:
        return rows * inner * matrix.element
    if precision == STATIC:
        first = not any(last in group[1:] for group in FUSED)
        return rows * inner + rows * (2 + 2 + 4 + 4) + (3 * 2 * inner + 2 + 1 if first else 0)
    copied = not (".experts." in matrix.name and last in ("down_proj", "w2"))
    return rows * inner + rows * (2 + 2 + (4 if copied else 0))


def write(place: Path, config: Config, kinds: dict[str, str]) -> str:
    (place / "config.json").write_text(json.dumps(config))
    stated = {"version": "1.0.0", "model_quant_type": DYNAMIC}
    stated |= {f"{name}.weight": kind for name, kind in kinds.items()}
    (place / DESCRIPTION).write_text(json.dumps(stated))
    return str(place)


def described(
    config: Config, stem: str, head: str, precision: Callable[[str], str]
) -> tuple[dict[str, str], float]:
    """What ModelSlim states of a model whose language model is called so, and a rank's bytes."""
    kinds, total = {}, 0.0
    for matrix in parts_of(config):
        kind = FLOAT if matrix.fixed else precision(matrix.name)
        total += matrix.copies * held(matrix, kind)
        name = head if matrix.name == "lm_head" else f"{stem}{matrix.name.removeprefix('model.')}"
        kinds[name] = kind
        if ".experts.0." in name:
            kinds[name.replace(".experts.0.", ".experts.1.")] = kind
    kinds.setdefault(head, FLOAT)  # a tied one is named, too
    return kinds, total


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_bytes_of_its_matrices(family: str, seed: int, tmp_path: Path) -> None:
    base, stems = FAMILIES[family]
    dice = Random(f"{family} {seed}")
    config = sized(base, dice)
    stem = dice.choice(stems)
    head = "language_model.lm_head" if stem.startswith("language_model.") else "lm_head"
    kinds, expected = described(config, stem, head, chosen(dice))
    model = read_model(write(tmp_path, config, kinds))
    assert model.quantization == "ascend_w8a8"
    assert model.weight_bytes(LAYOUT, 0).total == expected


ROWLESS = {
    "Mixtral": ("mistralai--Mixtral-8x22B-v0.1", "block_sparse_moe.experts", "w{}", "123"),
    "Ling": ("inclusionAI--Ling-1T", "mlp.experts", "{}_proj", ("gate", "up", "down")),
}


@pytest.mark.parametrize("case", ROWLESS)
def test_experts_of_a_type_without_a_row_are_refused_by_its_name(case: str, tmp_path: Path) -> None:
    """Source: vllm-ascend 182b75e, modelslim_config.py: `KeyError` of `experts.weight` there."""
    name, experts, part, each = ROWLESS[case]
    config = bundled(name) | {"num_hidden_layers": 1, "first_k_dense_replace": 0}
    kinds = {f"model.layers.0.{experts}.0.{part.format(x)}": DYNAMIC for x in each}
    attention = (
        ("attention.query_key_value", "attention.dense")
        if case == "Ling"
        else tuple(f"self_attn.{x}_proj" for x in "qkvo")
    )
    shared = [f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")]
    kinds |= {f"model.layers.0.{x}": DYNAMIC for x in (*attention, *shared)}
    kinds |= dict.fromkeys(("model.word_embeddings", *ENDS), FLOAT)
    said = (
        rf"model\.layers\.0\.{experts}: vllm-ascend 182b75e cannot read quantised routed experts "
        rf'of model_type "{config["model_type"]}": its packed_modules_model_mapping does not name'
    )
    model = read_model(write(tmp_path, config, kinds))
    with pytest.raises(ModelError, match=said):
        model.weight_bytes(LAYOUT, 0)
    plain = {key: FLOAT if ".experts." in key else kind for key, kind in kinds.items()}
    found = read_model(write(tmp_path, config, plain)).weight_bytes(LAYOUT, 0)
    count = config.get("num_experts", config.get("num_local_experts")) // RANKS
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    assert found.experts == count * 3 * width * config["hidden_size"] * 2


def test_a_language_model_named_alone_is_refused_where_the_mapper_leaves_its_name(
    tmp_path: Path,
) -> None:
    config = sized(KIMI, Random(1))
    kinds, _ = described(config, "model.", "lm_head", lambda name: FLOAT)
    kinds |= dict.fromkeys(("language_model.model.embed_tokens", "language_model.lm_head"), FLOAT)
    said = r"states no precision for language_model\.model\.layers\.\d"
    with pytest.raises(ModelError, match=said):
        read_model(write(tmp_path, config, kinds)).weight_bytes(LAYOUT, 0)


@pytest.mark.parametrize("lacks", ["q_proj", "v_proj"])
def test_values_alone_may_be_left_out_of_a_fused_linear(lacks: str, tmp_path: Path) -> None:
    """Source: vllm-ascend 182b75e, modelslim_config.py, `_is_missing_v_shard`."""
    config = sized(MINIMAX, Random(3))
    kinds, expected = described(config, "model.", "lm_head", lambda name: DYNAMIC)
    del kinds[f"model.layers.1.self_attn.{lacks}"]
    model = read_model(write(tmp_path, config, kinds))
    if lacks == "v_proj":
        assert model.weight_bytes(LAYOUT, 0).total == expected
        return
    with pytest.raises(ModelError, match=rf"no precision for model\.layers\.1\.self_attn\.{lacks}"):
        model.weight_bytes(LAYOUT, 0)


def test_packed_experts_have_the_precision_of_their_weight(tmp_path: Path) -> None:
    """Source: vllm-ascend 182b75e, modelslim_config.py, `_apply_extra_quant_adaptations`."""
    config = sized(MINIMAX, Random(2))
    kinds, _ = described(config, "model.", "lm_head", lambda name: DYNAMIC)
    path = Path(write(tmp_path, config, kinds)) / DESCRIPTION
    stated = {
        key.replace(".weight", ".weight_packed") if ".experts." in key else key: kind
        for key, kind in json.loads(path.read_text()).items()
    }
    packed = {k: "W4A16" if ".experts." in k else v for k, v in stated.items()}
    path.write_text(json.dumps(packed))
    with pytest.raises(ModelError, match=r"states W4A16 for model\.layers\.0\.block_sparse_moe"):
        read_model(str(tmp_path)).weight_bytes(LAYOUT, 0)
