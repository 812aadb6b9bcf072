"""What is said of an architecture that the planner refuses is what vLLM's own registry has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truth.registry import FILE, former, names, on_transformers, own
from truth.table import REFUSED
from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models import read_model, supported
from vllm_layershard.models.vllm_classes import said_of


def test_the_lists_are_those_of_the_registry() -> None:
    assert names() in FILE.read_text()


def test_every_architecture_that_is_read_has_a_class_in_vllm() -> None:
    assert set(supported()) <= own()


def test_each_name_of_the_registry_gets_its_own_words() -> None:
    assert {said_of(name) for name in own()} == {"vLLM 0.32 has it, we do not read it yet"}
    (backend,) = {said_of(name) for name in on_transformers() - own()}
    assert backend.startswith("it runs on vLLM 0.32's Transformers backend")
    for name, version in former().items():
        if name not in own() | on_transformers():
            assert said_of(name).endswith(f"any more, {version} was the last with it")
    assert said_of("HunYuanForCausalLM") == "vLLM 0.32 has no such class"


@pytest.mark.parametrize("architecture", REFUSED)
def test_the_refusal_says_it_and_the_table_names_only_what_is_refused(
    tmp_path: Path, architecture: str
) -> None:
    stated = {"architectures": [architecture], "model_type": "any"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UnknownModelError) as refused:
        read_model(str(tmp_path))
    assert f"its bytes are not guessed: {said_of(architecture)}; supported" in str(refused.value)
