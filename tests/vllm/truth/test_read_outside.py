"""What vLLM's classes read other than through a linear's quant method is never offered."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from vllm_layershard.models import Deployment, bundled_names, read_model
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.linear import short_names

FILES = (
    *(f"model_executor/models/{name}.py" for name in ("bailing_moe", "deepseek_v2", "glm4_moe")),
    *(f"model_executor/models/{name}.py" for name in ("glm4_moe_lite", "gpt_oss", "llama")),
    *(f"model_executor/models/{name}.py" for name in ("longcat_flash", "minimax_m2", "mistral")),
    *(f"model_executor/models/{name}.py" for name in ("mixtral", "qwen2", "qwen2_moe", "qwen3")),
    *(f"model_executor/models/{name}.py" for name in ("qwen3_5", "qwen3_moe", "qwen3_next")),
    "models/deepseek_v32/attention.py",
    "models/deepseek_v32/nvidia/model.py",
    "model_executor/layers/attention/mla_attention.py",
    "model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py",
    "model_executor/layers/mla.py",
)
"""Where vLLM 0.32 has the classes of the families that are read, and their attentions."""


def weights_read(source: str) -> Iterator[str]:
    """Each `name` of an expression `name.weight` or `anything.name.weight`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "weight":
            if isinstance(node.value, ast.Attribute):
                yield node.value.attr
            elif isinstance(node.value, ast.Name):
                yield node.value.id


def test_a_linear_whose_weight_a_class_reads_itself_is_refused_by_name():
    (root,) = importlib.util.find_spec("vllm").submodule_search_locations
    read = {name for file in FILES for name in weights_read((Path(root) / file).read_text())}
    linears = {
        name.rpartition(".")[2]
        for model in map(read_model, bundled_names())
        for name in short_names(model.linears(Deployment(ParallelLayout())))
    }
    assert {name for name in linears & read if refusal_of(name) is None} == set()
    assert linears & read >= {"kv_b_proj", "conv1d", "gate", "router"}  # it finds what is there


def test_routers_of_every_family_are_refused():
    alone = Deployment(ParallelLayout())
    for model in map(read_model, bundled_names()):
        segments = [segment for layer in model.blueprint.layers for segment in layer]
        shapes = {shape for segment in segments for shape in segment.shapes(64, alone)}
        for shape in (shape for shape in shapes if shape.after == "experts"):
            assert refusal_of(shape.suffix) is not None, (model.name, shape.suffix)
