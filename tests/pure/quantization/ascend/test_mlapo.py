"""The copies that vllm-ascend's MLAPO keeps of static W8A8 queries: counted, and not offered.

A checkpoint as ModelSlim describes it, by the names of test_modelslim_case.py.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.pure.quantization.ascend.test_modelslim_case import (
    DYNAMIC,
    STATIC,
    Precision,
    latent,
    modules,
)
from vllm_layershard import Layout, plan_model
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.estimate.auto_layers import candidates
from vllm_layershard.models import CacheDevice, Deployment, Model, read_model, shard_model
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.planner.default_layers import default_names
from vllm_layershard.planner.results.plan_result import PlanResult

SIXTEEN = Deployment(ParallelLayout(dp=16), ep=True)
ASCEND = CacheDevice(None)
DEEPSEEK, GLM = "deepseek-ai--DeepSeek-V3.2", "zai-org--GLM-5"


def described(tmp_path: Path, name: str, precision: Precision = latent) -> Model:
    config = json.loads((_BUNDLED / f"{name}.json").read_text()) | {"quantization_config": None}
    kinds = {f"{module}.weight": precision(module) for module in modules(config)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / DESCRIPTION).write_text(json.dumps({"model_quant_type": DYNAMIC} | kinds))
    return read_model(str(tmp_path))._replace(cache_device=ASCEND)


def dynamic(name: str) -> str:
    return DYNAMIC if latent(name) == STATIC else latent(name)


def copies(model: Model, deployment: Deployment = SIXTEEN, rank: int = 0) -> int:
    off = model._replace(mlapo=False)
    return model.weight_bytes(deployment, rank).total - off.weight_bytes(deployment, rank).total


def test_deepseeks_61_layers_have_3_gib_of_copies(tmp_path: Path) -> None:
    """128 heads of 128 + 64 by 1,536, and 1,536 + 512 + 64 by 7,168, in one byte each.

    Each row has a scale of the product and a bias of four bytes.
    """
    model = described(tmp_path, DEEPSEEK)
    rows = 24_576 * (1_536 + 8) + 2_112 * (7_168 + 8)
    assert copies(model) == 61 * rows == 3_239_164_416
    held = model.weight_bytes(SIXTEEN, 0)
    assert held.derived == 3_239_164_416, "beside the linears, which stay for prefills"
    assert copies(model, Deployment(ParallelLayout(dp=8, tp=2), ep=True)) == 61 * (
        12_288 * 1_544 + 2_112 * 7_176
    )
    stages = Deployment(ParallelLayout(dp=8, pp=2), ep=True)
    assert [copies(model, stages, rank) for rank in (0, 1)] == [
        layers * 53_101_056 for layers in (31, 30)
    ]


def test_glms_layers_and_its_draft_layer_have_them_too(tmp_path: Path) -> None:
    model = described(tmp_path, GLM)
    of_a_layer = 64 * 256 * 2_056 + (2_048 + 512 + 64) * 6_152
    assert copies(model) == 78 * of_a_layer
    assert copies(model._replace(drafted=1)) == 79 * of_a_layer


def test_no_other_device_precision_or_attention_has_them(tmp_path: Path) -> None:
    assert copies(described(tmp_path, DEEPSEEK)._replace(cache_device=CacheDevice(9))) == 0
    assert copies(described(tmp_path, DEEPSEEK, dynamic)) == 0
    assert copies(described(tmp_path, "deepseek-ai--DeepSeek-V3")) == 0, "a server by itself"


@pytest.mark.parametrize("name", [DEEPSEEK, GLM])
def test_the_queries_are_offered_where_nobody_copies_them_alone(tmp_path: Path, name: str) -> None:
    model = described(tmp_path, name)
    assert "q_b_proj" not in default_names(model, SIXTEEN)
    assert "o_proj" in default_names(model, SIXTEEN)
    assert "q_b_proj" in default_names(model._replace(cache_device=CacheDevice(9)), SIXTEEN)
    assert "q_b_proj" in default_names(described(tmp_path, name, dynamic), SIXTEEN)


@pytest.mark.parametrize("name", [DEEPSEEK, GLM])
def test_what_it_copies_is_no_candidate_of_a_search(tmp_path: Path, name: str) -> None:
    """`--layers auto` looks among these: the host refuses what is copied while it is on."""
    model, template = described(tmp_path, name), LayerShardConfig(layers=("o_proj",))
    copied = {"fused_qkv_a_proj", "q_b_proj"}
    found = set(candidates(model, SIXTEEN, template))
    assert "o_proj" in found
    assert found & copied == set()
    elsewhere = model._replace(cache_device=CacheDevice(9))
    assert set(candidates(elsewhere, SIXTEEN, template)) >= found | {"q_b_proj"}


def test_a_plan_that_names_them_has_no_copies(tmp_path: Path) -> None:
    model = described(tmp_path, DEEPSEEK)
    named = shard_model(model, SIXTEEN, LayerShardConfig(layers=("o_proj", "q_b_proj")))
    others = shard_model(model, SIXTEEN, LayerShardConfig(layers=("o_proj",)))
    assert not named.model.mlapo
    assert others.model.mlapo
    assert others.weight_bytes[0].total - named.weight_bytes[0].total == 3_239_164_416


def planned(tmp_path: Path, name: str, precision: Precision = latent, **asked: str) -> PlanResult:
    described(tmp_path, name, precision)
    layout = Layout(dp=16, ep=True)
    return plan_model(str(tmp_path), layout=layout, hardware="910C", **asked)


def switch(result: PlanResult) -> object:
    assert result.launch is not None
    return json.loads(shlex.split(result.launch)[-1]).get("enable_mlapo", "absent")


def notes(result: PlanResult) -> list[str]:
    return [note for note in result.warnings if "MLAPO" in note]


def test_the_plan_says_what_is_counted_and_what_the_launch_line_switches_off(
    tmp_path: Path,
) -> None:
    default = planned(tmp_path, DEEPSEEK)
    assert switch(default) == "absent"
    (counted,) = notes(default)
    assert "on every rank, 3,239,164,416 bytes, which are counted" in counted
    for names in ("o_proj,q_b_proj", "o_proj,fused_qkv_a_proj"):
        named = planned(tmp_path, DEEPSEEK, layers=names)
        assert switch(named) is False
        (spared,) = notes(named)
        assert "3,239,164,416 bytes of copies a rank are spared" in spared


def test_dense_attention_copies_on_one_kind_of_instance_alone(tmp_path: Path) -> None:
    result = planned(tmp_path, "deepseek-ai--DeepSeek-V3")
    assert switch(result) == "absent"
    (note,) = notes(result)
    assert note.startswith("q_b_proj: ")
    assert "(kv_consumer)" in note
    assert notes(planned(tmp_path, "deepseek-ai--DeepSeek-V3", layers="o_proj")) == []
    assert notes(planned(tmp_path, "deepseek-ai--DeepSeek-V3", dynamic)) == []
    assert notes(planned(tmp_path, DEEPSEEK, dynamic)) == []
