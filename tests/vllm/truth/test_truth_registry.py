"""What is said of an architecture that the planner refuses is what vLLM's own registry has."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from vllm.config import ModelConfig
from vllm.config.model import try_match_architecture_defaults
from vllm.model_executor.models.registry import ModelRegistry

from truth.compare import CONFIGS
from truth.registry import (
    FILE,
    backend,
    former,
    generating,
    in_plugins,
    names,
    on_transformers,
    own,
    suffixes,
)
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
    (on_it,) = {said_of(name) for name in (on_transformers() | backend()) - own()}
    assert on_it.startswith("it runs on vLLM 0.32's Transformers backend")
    for name, version in former().items():
        if name not in own() | on_transformers():
            assert f"no such class any more, {version} was the last with it" in said_of(name)
    for name in in_plugins():
        assert "no such class, and names a plugin with it" in said_of(name)
    assert said_of("HunYuanForCausalLM").startswith("vLLM 0.32 has no such class; the Trans")


def test_every_name_of_the_registry_has_words_for_itself_and_every_other_end() -> None:
    """vLLM's own registry is asked which class it takes for a name that it lacks."""
    known = own() | on_transformers() | backend()
    cut = {name.removesuffix(end) for name in known for end, _ in suffixes()}
    asked = {stem + end for stem in cut for end, _ in suffixes()} - known
    asked -= {*former(), *in_plugins()}
    seen: Counter[str] = Counter()
    for name in sorted(asked):
        convert, taken = _resolved(name)
        if taken == name or (convert == "none" and not _generates(taken)):
            kind, words = "none", "vLLM 0.32 has no such class; the Transformers backend may"
        elif convert == "none":
            kind, words = "as", f"vLLM 0.32 serves it as {taken}, or by its Transformers backend;"
        else:
            kind, words = convert, f"vLLM 0.32 serves it by conversion of {taken}; not read here"
        assert said_of(name).startswith(words), name
        seen[kind] += 1
    assert min(seen[kind] for kind in ("none", "as", "embed", "classify")) > 50, seen


def _resolved(name: str) -> tuple[str, str]:
    """What vLLM converts it to, and the class that it takes for it."""
    match = try_match_architecture_defaults(name)
    assert match is not None
    _, (runner, convert) = match
    stated = SimpleNamespace(runner_type=runner, convert_type=convert)
    return convert, ModelRegistry._normalize_arch(name, cast("ModelConfig", stated))


def _generates(name: str) -> bool:
    match = try_match_architecture_defaults(name)
    return name in generating() or (match is not None and match[1][0] == "generate")


def test_a_plugins_class_and_a_former_one_are_never_taken_for_another() -> None:
    for name in {*former(), *in_plugins()} - own() - on_transformers():
        stated = cast("ModelConfig", SimpleNamespace())
        assert ModelRegistry._normalize_arch(name, stated) == name


@pytest.mark.parametrize("name", ["Qwen3ForSequenceClassification", "Qwen3ForTokenClassification"])
def test_vllm_itself_resolves_it_by_conversion(tmp_path: Path, name: str) -> None:
    stated = json.loads((CONFIGS / "Qwen--Qwen3-32B.json").read_text())
    stated |= {"architectures": [name], "num_labels": 2}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    model = ModelConfig(model=str(tmp_path), skip_tokenizer_init=True)
    assert (model.runner_type, model.convert_type) == ("pooling", "classify")
    assert "by conversion" in said_of(name)


@pytest.mark.parametrize("architecture", REFUSED)
def test_the_refusal_says_it_and_the_table_names_only_what_is_refused(
    tmp_path: Path, architecture: str
) -> None:
    stated = {"architectures": [architecture], "model_type": "any"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UnknownModelError) as refused:
        read_model(str(tmp_path))
    assert f"its bytes are not guessed: {said_of(architecture)}; supported" in str(refused.value)
