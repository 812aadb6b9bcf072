"""The planner's names of modules and its methods equal those of vLLM's own classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from truth.asking import answers_of
from vllm_layershard.models import bundled_names, read_model, supported
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.quantization.read import UNREAD_METHODS, known_methods

SAID = """
import ast, inspect, json, sys, textwrap
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.models.registry import ModelRegistry

def calls(model):
    \"\"\"The calls of the first class that makes a head or has a language model, and where.\"\"\"
    for one in model.__mro__:
        if "__init__" in vars(one):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(one)))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    yield node, inspect.getmodule(one)


def tells_head(model):
    \"\"\"Whether the class, or that of its language model, hands its head quant_config.\"\"\"
    for call, module in calls(model):
        if call.func.id == "ParallelLMHead":
            return any(key.arg == "quant_config" for key in call.keywords)
        if call.func.id == "init_vllm_registered_model":
            for key in call.keywords:
                if key.arg == "architectures":
                    inner = ast.literal_eval(key.value)[0]
                    return tells_head(ModelRegistry.models[inner].load_model_cls())
        inner = getattr(module, call.func.id, None)
        if isinstance(inner, type) and inner is not model and "ForCausalLM" in call.func.id:
            return tells_head(inner)
    return None


said = {"methods": QUANTIZATION_METHODS}
for name in json.load(sys.stdin):
    model = ModelRegistry.models[name].load_model_cls()
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renames = mapper.get_rename_mapper() if mapper is not None else None
    said[name] = {
        "fused": getattr(model, "packed_modules_mapping", None) or {},
        "renames": mapper is not None,
        "prefixes": dict(renames.orig_to_new_prefix) if renames else {},
        "substrings": dict(renames.orig_to_new_substr) if renames else {},
        "suffixes": dict(renames.orig_to_new_suffix) if renames else {},
        "tells_head": tells_head(model),
        "others": bool(renames and (renames.orig_to_new_regex or renames.orig_to_new_renaming)),
    }
print(json.dumps(said))
"""

LATER = {"fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]}
"""What DeepSeek's classes add to their mapping as they build, which the quant config shares.

Those with vLLM's mixin `SupportsQuant` hand over a copy before: what Qwen3-MoE adds has no effect.
"""
OF_LANGUAGE_MODELS = {"KimiK25ForConditionalGeneration": {"gate_up_proj": ["gate_proj", "up_proj"]}}
"""What the class of its language model says in its place."""

TOWER = {"qkv": ["qkv"]}
"""Of vision towers, which are not planned."""


@cache
def said() -> dict[str, Any]:
    """What vLLM's classes say, asked once."""
    found: dict[str, Any] = answers_of(SAID, supported())
    return found


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("architecture", supported())
def test_names_are_those_of_the_class(architecture: str) -> None:
    names, vllm = names_of(architecture), said()[architecture]
    fused = {name: list(parts) for name, parts in names.fused.items()}
    assert {key: fused[key] for key in vllm["fused"] if key not in TOWER} == {
        key: parts for key, parts in vllm["fused"].items() if key not in TOWER
    }
    added = {key: parts for key, parts in fused.items() if key not in vllm["fused"]}
    assert added.items() <= (LATER | OF_LANGUAGE_MODELS.get(architecture, {})).items()
    assert names.renames == vllm["renames"]
    assert dict(names.prefixes) == vllm["prefixes"]
    assert dict(names.substrings) == vllm["substrings"]
    assert dict(names.suffixes) == vllm["suffixes"]
    assert not vllm["others"]


UNTOLD = {"GptOssForCausalLM", "Qwen3NextForCausalLM"}
"""Their heads have `head_quantisable` off: the bundled configs of both say so below."""


@pytest.mark.matrix(part="truth")
def test_heads_are_told_of_the_quantisation_but_for_two_classes() -> None:
    told = {architecture: said()[architecture]["tells_head"] for architecture in supported()}
    assert told == {architecture: architecture not in UNTOLD for architecture in supported()}


@pytest.mark.parametrize("name", bundled_names())
def test_a_blueprint_says_whether_its_head_is_told(name: str) -> None:
    model = read_model(name)
    assert model.blueprint.head_quantisable == (model.architecture not in UNTOLD)


@pytest.mark.matrix(part="truth")
def test_every_method_of_vllm_is_read_or_known_to_be_unread() -> None:
    assert set(said()["methods"]) == (known_methods() | set(UNREAD_METHODS)) - {
        "ascend",  # vllm-ascend's
        "auto-round",  # which vLLM turns into inc
    }
