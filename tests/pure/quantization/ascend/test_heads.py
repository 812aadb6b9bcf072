"""Heads and embeddings of ModelSlim checkpoints, as vllm-ascend holds them or cannot."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.pure.quantization.ascend.test_families import (
    DYNAMIC,
    FAMILIES,
    FLOAT,
    KIMI,
    LAYOUT,
    STATIC,
    Config,
    bundled,
    described,
    sized,
    write,
)
from tests.pure.quantization.ascend.test_modelslim_case import modules
from vllm_layershard import HardwareError, Layout, ModelError, plan_model
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.plan import ParallelLayout


def test_a_head_of_another_name_is_refused(tmp_path: Path) -> None:
    config = sized(KIMI, Random(1))
    kinds, _ = described(config, "language_model.model.", "lm_head", lambda name: FLOAT)
    with pytest.raises(ModelError, match=r"no precision for language_model\.lm_head"):
        read_model(write(tmp_path, config, kinds)).weight_bytes(LAYOUT, 0)


def dense(place: Path, head: str | None = None, **changes: Any) -> str:
    """A described Llama of four layers."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    config = bundled("meta-llama--Meta-Llama-3.1-8B") | sizes | heads | {"vocab_size": 4100}
    linears = (*(f"self_attn.{x}" for x in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
    kinds = {f"model.layers.{i}.{x}_proj": DYNAMIC for i in range(4) for x in linears}
    kinds |= {"model.embed_tokens": FLOAT} | ({"lm_head": head} if head else {})
    return write(place, config | changes, kinds)


@pytest.mark.parametrize(
    ("kind", "a_row"),
    [(FLOAT, 2 * 512), (DYNAMIC, 512 + 2 + 2 + 4), (STATIC, 512 + 2 + 2 + 4 + 4)],
)
@pytest.mark.parametrize("tp", [1, 2])
def test_a_head_has_the_precision_that_is_stated(
    kind: str, a_row: int, tp: int, tmp_path: Path
) -> None:
    """Source: vllm-ascend 182b75e, method_adapters.py, `AscendEmbeddingMethod`: as a linear."""
    layout = Layout(dp=2, tp=tp)
    found = plan_model(dense(tmp_path, kind), layout=layout, hardware="910B3", layers="o_proj")
    inputs = 3 * 2 * 512 + 2 + 1 if kind == STATIC else 0
    assert found.planned.weight_bytes[0].head == 4160 // tp * a_row + inputs


HEADS: dict[str, tuple[str, Config, str]] = {
    "another class": ("W8A16", {}, "lm_head: quant_model_description.json states W8A16"),
    "tied": (DYNAMIC, {"tie_word_embeddings": True}, "lm_head: vllm-ascend 182b75e transposes"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_a_server_cannot_hold_so_is_refused(case: str, tmp_path: Path) -> None:
    kind, changes, said = HEADS[case]
    with pytest.raises((HardwareError, ModelError), match=said):
        plan_model(
            dense(tmp_path, kind, **changes),
            layout=Layout(dp=2),
            hardware="910B3",
            layers="o_proj",
        )


def hybrid(directory: Path, head: dict[str, str]) -> str:
    """A described Qwen3-Next of eight layers, whose embedding is not named."""
    config = bundled("Qwen--Qwen3-Next-80B-A3B-Instruct") | {"num_hidden_layers": 8}
    precision = dict(head)
    stated = ("in_proj_qkvz", "in_proj_ba", "out_proj")
    for i in range(8):
        precision |= {f"model.layers.{i}.linear_attn.{x}": DYNAMIC for x in stated}
        precision |= {f"model.layers.{i}.self_attn.{x}_proj": DYNAMIC for x in "qkvo"}
        precision |= {f"model.layers.{i}.mlp.{x}": FLOAT for x in ("gate", "shared_expert_gate")}
        for place in ("shared_expert", "experts.0"):
            for x in ("gate", "up", "down"):
                precision[f"model.layers.{i}.mlp.{place}.{x}_proj"] = DYNAMIC
    return write(directory, config, precision)


OF_HYBRIDS = {"layout": Layout(dp=8, ep=True), "hardware": "910B3", "layers": "o_proj"}


def test_a_head_that_vllms_class_does_not_quantise_is_refused(tmp_path: Path) -> None:
    """Source: vLLM 0.32, qwen3_next.py: `ParallelLMHead` without a `quant_config`."""
    said = "lm_head: vLLM's class of this model loads no quantised head"
    with pytest.raises(HardwareError, match=said):
        plan_model(hybrid(tmp_path, {"lm_head": DYNAMIC}), **OF_HYBRIDS)


@pytest.mark.parametrize("head", [{}, {"model.lm_head": FLOAT}, {"lm_head": FLOAT}])
def test_what_vllms_class_does_not_ask_for_may_be_left_out(
    head: dict[str, str], tmp_path: Path
) -> None:
    """Source: vLLM 0.32, qwen3_next.py: the embedding has no `quant_config` either."""
    found = plan_model(hybrid(tmp_path, head), **OF_HYBRIDS)
    assert found.planned.weight_bytes[0].head == 151_936 * 2_048 * 2


MISSING = (
    r"{0}: quant_model_description\.json states no precision for {0}, and vllm-ascend 182b75e ends "
    r"at the start where a name is missing; add {0}\.weight to the file, as FLOAT where it is not "
)


@pytest.mark.parametrize("elsewhere", [{}, {"model.lm_head": FLOAT}, {"head": FLOAT}])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_not_named_is_refused(
    elsewhere: dict[str, str], tied: bool, tmp_path: Path
) -> None:
    """Source: vllm-ascend 182b75e, modelslim_config.py, `get_linear_quant_type`: `KeyError`.

    vLLM 0.32, llama.py, qwen3.py: a tied head is built as any other, and tied then.
    """
    path = Path(dense(tmp_path, tie_word_embeddings=tied)) / DESCRIPTION
    stated = {f"{name}.weight": kind for name, kind in elsewhere.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    with pytest.raises(ModelError, match=MISSING.format("lm_head")):
        read_model(str(tmp_path))


@pytest.mark.parametrize("named", ["lm_head", "language_model.lm_head"])
@pytest.mark.parametrize("family", ["Qwen3-VL", "Qwen3-VL-MoE", "Qwen3.5", "Qwen3.5-MoE"])
def test_a_wrappers_head_has_either_name(family: str, named: str, tmp_path: Path) -> None:
    """Source: vLLM 0.32, qwen3_vl.py, its mapper; vllm-ascend 182b75e, `quant_prefix_mapper`."""
    config = sized(FAMILIES[family][0], Random(2))
    kinds, _ = described(config, "model.language_model.", named, lambda name: FLOAT)
    read_model(write(tmp_path, config, kinds))
    kinds[f"model.{named}"] = kinds.pop(named)
    with pytest.raises(ModelError, match=r"no precision for (language_model\.)?lm_head"):
        read_model(write(tmp_path, config, kinds))


EMBEDDINGS = {
    "MiniMax-M2": "model.embed_tokens",
    "Qwen3-VL": "language_model.model.embed_tokens",
    "Qwen3-VL-MoE": "language_model.model.embed_tokens",
    "Qwen3.5": None,
    "Qwen3.5-MoE": None,
    "Kimi-K2.5": "language_model.model.embed_tokens",
}
"""By what name vLLM's class asks for it; None: it builds one without a `quant_config`."""


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_that_is_asked_for_and_not_named_is_refused(
    family: str, tmp_path: Path
) -> None:
    base, (stem, *_) = FAMILIES[family]
    config = sized(base, Random(2))
    head = "language_model.lm_head" if family == "Kimi-K2.5" else "lm_head"
    kinds, expected = described(config, stem, head, lambda name: FLOAT)
    del kinds[f"{stem}embed_tokens"]
    path = write(tmp_path, config, kinds)
    asked = EMBEDDINGS[family]
    if asked is None:
        assert read_model(path).weight_bytes(LAYOUT, 0).total == expected
        return
    with pytest.raises(ModelError, match=MISSING.format(asked.replace(".", r"\."))):
        read_model(path)


def test_an_embedding_without_a_name_needs_any_plain_weight(tmp_path: Path) -> None:
    """Source: vLLM 0.32, llama.py; vllm-ascend 182b75e, `is_layer_skipped_ascend`: it asks for a
    weight that is FLOAT and begins with nothing.
    """
    path = Path(dense(tmp_path, DYNAMIC)) / DESCRIPTION
    stated = json.loads(path.read_text())
    del stated["model.embed_tokens.weight"]
    path.write_text(json.dumps(stated))
    said = (
        r"model\.embed_tokens: quant_model_description\.json states FLOAT for no weight, .*; add "
        r"model\.embed_tokens\.weight to the file, as FLOAT"
    )
    with pytest.raises(ModelError, match=said):
        read_model(str(tmp_path))
    path.write_text(json.dumps(stated | {"model.norm.weight": FLOAT}))
    read_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("deepseek-ai--DeepSeek-V3", 61), ("zai-org--GLM-5", 78), ("zai-org--GLM-4.7", 92)],
)
@pytest.mark.parametrize("head", [None, "shared_head.head", "head"])
def test_a_draft_layers_head_is_named_too(
    head: str | None, name: str, layers: int, tmp_path: Path
) -> None:
    """Source: vLLM 0.32, deepseek_mtp.py and glm4_moe_mtp.py, `SharedHead`; vllm-ascend 182b75e,
    `_apply_extra_quant_adaptations`.
    """
    config = bundled(name)
    kinds = dict.fromkeys(modules(config), FLOAT)
    del kinds[f"model.layers.{layers}.shared_head.head"]
    if head is not None:
        kinds[f"model.layers.{layers}.{head}"] = FLOAT
    model = read_model(write(tmp_path, config, kinds))
    sixteen = Deployment(ParallelLayout(dp=16), ep=True)
    alone = model.weight_bytes(sixteen, 0).total
    drafting = model._replace(drafted=1)
    if head is not None:
        assert drafting.weight_bytes(sixteen, 0).total > alone
        return
    said = MISSING.format(rf"model\.layers\.{layers}\.head")
    with pytest.raises(ModelError, match=said):
        drafting.weight_bytes(sixteen, 0)


def test_a_quantised_embedding_is_refused(tmp_path: Path) -> None:
    path = Path(dense(tmp_path)) / DESCRIPTION
    stated = json.loads(path.read_text()) | {"model.embed_tokens.weight": DYNAMIC}
    path.write_text(json.dumps(stated))
    said = 'model.embed_tokens.weight: is "W8A8_DYNAMIC", and vllm-ascend 182b75e looks up no'
    with pytest.raises(ModelError, match=said):
        read_model(str(tmp_path))
