"""Heads and embeddings of ModelSlim checkpoints, as vllm-ascend holds them or cannot."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.pure.quantization.ascend.test_families import (
    DYNAMIC,
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
from vllm_layershard import HardwareError, Layout, ModelError, plan_model
from vllm_layershard.models import read_model
from vllm_layershard.models.sources.beside import DESCRIPTION


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


def test_a_head_that_vllms_class_does_not_quantise_is_refused(tmp_path: Path) -> None:
    """Source: vLLM 0.32, qwen3_next.py: `ParallelLMHead` without a `quant_config`."""
    config = bundled("Qwen--Qwen3-Next-80B-A3B-Instruct") | {"num_hidden_layers": 4}
    precision = {"lm_head": DYNAMIC}
    stated = ("in_proj_qkvz", "in_proj_ba", "out_proj")
    for i in range(4):
        precision |= {f"model.layers.{i}.linear_attn.{x}": DYNAMIC for x in stated}
        precision |= {f"model.layers.{i}.self_attn.{x}_proj": DYNAMIC for x in "qkvo"}
        for place in ("shared_expert", "experts.0"):
            for x in ("gate", "up", "down"):
                precision[f"model.layers.{i}.mlp.{place}.{x}_proj"] = DYNAMIC
    path = write(tmp_path, config, precision)
    said = "lm_head: vLLM's class of this model loads no quantised head"
    with pytest.raises(HardwareError, match=said):
        plan_model(path, layout=Layout(dp=8, ep=True), hardware="910B3", layers="o_proj")


def test_a_quantised_embedding_is_refused(tmp_path: Path) -> None:
    path = Path(dense(tmp_path)) / DESCRIPTION
    stated = json.loads(path.read_text()) | {"model.embed_tokens.weight": DYNAMIC}
    path.write_text(json.dumps(stated))
    said = 'model.embed_tokens.weight: is "W8A8_DYNAMIC", and vllm-ascend 182b75e looks up no'
    with pytest.raises(ModelError, match=said):
        read_model(str(tmp_path))
