"""A multimodal model's language model is planned as if it stood alone, under another prefix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

WRAPPED = {
    "moonshotai/Kimi-K2.5": "DeepseekV3ForCausalLM",
    "Qwen/Qwen3.5-397B-A17B": "Qwen3_5MoeForCausalLM",
}
"""The text models alone are held to vLLM's classes by the truth tests."""


@pytest.mark.parametrize("deployment", [(1, 8, True), (2, 2, True), (8, 1, False)])
@pytest.mark.parametrize("name", WRAPPED)
def test_equal_but_for_the_prefix(
    name: str, deployment: tuple[int, int, bool], tmp_path: Path
) -> None:
    tp, dp, ep = deployment
    layout = Deployment(ParallelLayout(tp=tp, dp=dp), ep=ep)
    config = json.loads((_BUNDLED / f"{name.replace('/', '--')}.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [WRAPPED[name]]}))
    wrapped, alone = read_model(name), read_model(str(tmp_path))
    planned = {linear.prefix: linear.tensors for linear in wrapped.linears(layout)}
    assert planned == {
        f"language_model.{linear.prefix}": linear.tensors for linear in alone.linears(layout)
    }
    assert wrapped.weight_bytes(layout, 0) == alone.weight_bytes(layout, 0)
    layers = range(alone.num_layers)
    assert wrapped.kv_bytes_per_token("auto", layers, layout) == alone.kv_bytes_per_token(
        "auto", layers, layout
    )
