"""A scale or a packed weight for which the config leaves no place is said, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import deepseek, small_config
from tests.pure.models import test_checkpoint, test_stored_experts
from tests.pure.models.test_checkpoint import FP8
from tests.pure.models.test_stored_experts import LAYERS, SECTIONS, config, stored
from tests.pure.quantization.test_stored_linears import METHODS, dense
from vllm_layershard.models.checkpoint.comparison import Disagreement

LAYER = "model.layers.0"


def strays(place: Path, method: str, name: str) -> list[str]:
    """What is said where a quantised model has one tensor more."""
    stated, tensors = dense(method)
    assert name not in tensors
    tensors[name] = ("F32", [2, 1])
    return [str(one) for one in test_checkpoint.compared(place, stated, tensors).disagreements]


@pytest.mark.parametrize(
    ("method", "leaf"),
    [
        ("awq", "weight_scale_inv"),
        ("awq", "weight_packed"),
        ("gptq", "weight_scale"),
        ("gptq", "weight_zero_point"),
        ("modelopt", "weight_scale_inv"),
        ("modelopt", "qweight"),
        ("modelopt_fp4", "scales"),
        ("pack-quantized", "qzeros"),
        ("pack-quantized", "weight_zero_point"),
        ("pack-quantized", "weight_g_idx"),
        ("compressed-tensors", "input_scale"),
    ],
)
@pytest.mark.parametrize("linear", ["self_attn.o_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_a_scale_of_another_method_beside_a_quantised_linear(
    linear: str, method: str, leaf: str, tmp_path: Path
) -> None:
    name = f"{LAYER}.{linear}.{leaf}"
    assert strays(tmp_path, method, name) == [f"{name}: expected nothing, stored F32 [2, 1]"]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"gptq", "ascend"}))
def test_an_activation_order_is_left_unread_in_every_quantised_model(
    method: str, tmp_path: Path
) -> None:
    assert strays(tmp_path, method, f"{LAYER}.self_attn.o_proj.g_idx") == []
    assert strays(tmp_path, method, "lm_head.g_idx") == []


@pytest.mark.parametrize("leaf", ["weight_scale", "scales", "qweight", "weight_packed"])
@pytest.mark.parametrize(
    "module", ["lm_head", "model.embed_tokens", "language_model.model.embed_tokens"]
)
def test_a_scale_beside_a_head_or_an_embedding_that_is_not_quantised(
    module: str, leaf: str, tmp_path: Path
) -> None:
    name = f"{module}.{leaf}"
    assert strays(tmp_path, "awq", name) == [f"{name}: expected nothing, stored F32 [2, 1]"]


def test_the_scales_of_a_quantised_head_are_its_own(tmp_path: Path) -> None:
    stated, tensors = dense("gptq")
    section = stated["quantization_config"]
    assert isinstance(section, dict)
    stated["quantization_config"] = section | {"lm_head": True}
    for leaf in ("qweight", "qzeros", "scales", "g_idx"):
        tensors[f"lm_head.{leaf}"] = ("I32", [1])
    assert test_checkpoint.compared(tmp_path, stated, tensors).disagreements == ()
    tensors["lm_head.weight_scale"] = ("F32", [1])
    found = test_checkpoint.compared(tmp_path, stated, tensors).disagreements
    assert [one.tensor for one in found] == ["lm_head.weight_scale"]


def test_those_of_draft_layers_are_not_the_models(tmp_path: Path) -> None:
    stated = small_config(**FP8)
    tensors = deepseek(stated)
    tensors["model.layers.9.shared_head.head.weight_scale_inv"] = ("F32", [4, 2])
    tensors["model.layers.9.embed_tokens.weight_scale_inv"] = ("F32", [4, 2])
    assert test_checkpoint.compared(tmp_path, stated, tensors).disagreements == ()


@pytest.mark.parametrize(
    ("form", "leaf"),
    [
        ("awq", "weight_scale_inv"),
        ("gptq", "weight_scale"),
        ("fp8 blocks", "input_scale"),
        ("fp8 rows", "qzeros"),
        ("nvfp4", "weight_global_scale"),
        ("int4 packed", "scales"),
        ("mxfp8", "weight_offset"),
    ],
)
def test_a_scale_of_another_method_beside_an_expert(form: str, leaf: str, tmp_path: Path) -> None:
    tensors = stored([form] * LAYERS)
    prefix = "model.layers.1.mlp.experts"
    extra = {f"{prefix}.{expert}.up_proj.{leaf}": ("F32", [1]) for expert in (0, 2)}
    known = {one.tensor for one in _experts(tmp_path, form, tensors)}
    found = {
        str(one) for one in _experts(tmp_path, form, tensors | extra) if one.tensor not in known
    }
    assert found == {
        f"{prefix}: expected nothing beside the weights, stored {prefix}.0.up_proj.{leaf} "
        "as F32 [1] and 1 more"
    }


@pytest.mark.parametrize("form", [name for name in SECTIONS if name != "none"])
def test_an_expert_as_its_packer_stores_it_has_none(form: str, tmp_path: Path) -> None:
    found = _experts(tmp_path, form, stored([form] * LAYERS))
    assert [one for one in found if one.tensor.endswith(".experts")] == []


def _experts(
    place: Path, form: str, tensors: test_stored_experts.Tensors
) -> tuple[Disagreement, ...]:
    section = SECTIONS[form]
    assert section is not None
    if form == "awq":  # it packs eight outputs in an integer, and a router has four
        section = section | {"modules_to_not_convert": ["mlp.gate"]}
    return test_stored_experts.compared(place, config(section), tensors).disagreements


def test_experts_that_are_not_quantised_in_a_quantised_model(tmp_path: Path) -> None:
    section = FP8["quantization_config"]
    assert isinstance(section, dict)
    names = [f"model.layers.{layer}.mlp.experts" for layer in range(4, 9)]
    stated = small_config(**FP8 | {"quantization_config": section | {"ignored_layers": names}})
    tensors = deepseek(stated)
    for name, (_, shape) in list(tensors.items()):
        if ".experts." in name and name.endswith(".weight"):
            tensors[name] = ("BF16", shape)
    found = test_checkpoint.compared(tmp_path, stated, tensors).disagreements
    assert [one.tensor for one in found] == names
    assert found[0].expected == "nothing beside the weights"
    assert ".weight_scale_inv as F32 " in found[0].stored
    assert found[0].stored.endswith(" and 23 more")
