"""What `import vllm_layershard` gives: a list of names, each imported when it is asked for."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import vllm_layershard
from vllm_layershard import errors

ROOT = Path(__file__).parents[3]
PUBLIC = {
    "__version__",
    "LayerShardConfig",
    *("load_model", "plan_model", "map_layers", "compare_layouts"),
    *("list_models", "load_hardware", "list_hardware"),
    *("Layout", "LoadedModel", "Hardware"),
    *("PlanResult", "MapResult", "CompareResult", "ModelsResult", "HardwareResult"),
    *("LayoutCapacity", "RefusedLayout"),
    *("LayerShardError", "ConfigError", "PlanError", "ModelError", "UnknownModelError"),
    *("HardwareError", "HostError", "NodeError", "MismatchError", "ReloadError"),
    "TransportError",
}
"""Names are added. One that goes or changes its meaning breaks those who import it."""

CONSUMER = """
from typing import assert_type

from vllm_layershard import (
    CompareResult, ConfigError, Hardware, LayerShardConfig, Layout, LoadedModel, MapResult,
    PlanResult, compare_layouts, load_hardware, load_model, map_layers, plan_model,
)

model = load_model("DeepSeek-V3", offline=True)
assert_type(model, LoadedModel)
result = plan_model(model, ["o_proj"], Layout(dp=8, ep=True), hardware="H200", prefetch_step=2)
assert_type(result, PlanResult)
assert_type(result.memory.saved_bytes_min, int)
assert_type(result.prefetch.phases[0].hidden, bool | None)
assert_type(result.launch, str | None)
assert_type(map_layers(model, config=LayerShardConfig(layers=("o_proj",))), MapResult)
assert_type(compare_layouts(model, ["tp8"], hardware=load_hardware("H20")), CompareResult)
assert_type(load_hardware("H200"), Hardware)
assert issubclass(ConfigError, Exception)
"""


def test_the_names_are_these() -> None:
    assert set(vllm_layershard.__all__) == PUBLIC
    assert vllm_layershard.__all__ == sorted(vllm_layershard.__all__)
    assert set(dir(vllm_layershard)) >= PUBLIC


def test_every_error_that_a_user_can_cause_is_among_them() -> None:
    classes = inspect.getmembers(errors, inspect.isclass)
    tree = {name for name, one in classes if one.__module__ == errors.__name__}
    assert tree
    assert tree <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(vllm_layershard, name)
    if name == "__version__":
        assert value == vllm_layershard.version.__version__
        return
    assert value.__name__ == name
    assert value is getattr(sys.modules[value.__module__], name)
    assert value.__module__.startswith("vllm_layershard.")
    assert value.__doc__


def test_no_name_is_that_of_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules([str(ROOT / "vllm_layershard")])}
    assert "planner" in modules
    assert not modules & PUBLIC


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'vllm_layershard' has no attribute 'plan_modle'"):
        vllm_layershard.plan_modle  # noqa: B018
    with pytest.raises(ImportError, match="plan_modle"):
        exec("from vllm_layershard import plan_modle")


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement, and had not before."""
    script = (
        f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\nbefore = set(sys.modules)\n"
        f"{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout))


def test_the_package_alone_imports_the_standard_library_only() -> None:
    loaded = loaded_by("import vllm_layershard\ndir(vllm_layershard)")
    tops = {module.partition(".")[0] for module in loaded}
    assert {name for name in loaded if name.startswith("vllm_layershard")} == {"vllm_layershard"}
    assert tops - sys.stdlib_module_names == {"vllm_layershard"}


def test_no_name_imports_what_serves_or_what_parses() -> None:
    loaded = loaded_by("from vllm_layershard import *")
    assert "vllm_layershard.planner.plan" in loaded
    tops = {module.partition(".")[0] for module in loaded}
    assert not tops & {"torch", "vllm", "pydantic", "typer", "rich", "numpy", "layershard_cli"}
    below = ("vllm_layershard.runtime", "vllm_layershard.hosts", "vllm_layershard.measure")
    assert not [module for module in loaded if module.startswith(below)]


def test_a_plan_needs_neither_pydantic_nor_typer() -> None:
    loaded = loaded_by("import vllm_layershard as v\nv.plan_model('DeepSeek-V3').document()")
    assert not {module.partition(".")[0] for module in loaded} & {"torch", "pydantic", "typer"}


RESULTS = {
    "plan": lambda: vllm_layershard.plan_model("DeepSeek-V3", ["o_proj"], traced=True),
    "map": lambda: vllm_layershard.map_layers("Qwen3-Next-80B-A3B-Instruct"),
    "compare": lambda: vllm_layershard.compare_layouts("LongCat-Flash-Chat"),
    "models": vllm_layershard.list_models,
    "hardware": vllm_layershard.list_hardware,
    "one device": lambda: vllm_layershard.list_hardware("910C"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_frozen_and_survives_copies_and_pickles(name: str) -> None:
    result = RESULTS[name]()
    for other in (
        pickle.loads(pickle.dumps(result)),
        copy.copy(result),
        copy.deepcopy(result),
    ):
        assert type(other) is type(result)
        assert other.document() == result.document()
    for field in result._fields:
        with pytest.raises(AttributeError):
            setattr(result, field, None)
    with pytest.raises(AttributeError):
        result.another = None


def test_errors_survive_pickles() -> None:
    for name in PUBLIC:
        if name.endswith("Error"):
            error = pickle.loads(pickle.dumps(getattr(vllm_layershard, name)("what; remedy")))
            assert (type(error).__name__, str(error)) == (name, "what; remedy")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has this package installed, as others have it, and nothing else."""
    home = tmp_path_factory.mktemp("outside")
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "vllm_layershard").symlink_to(ROOT / "vllm_layershard")
    return home


def checked(home: Path, script: str) -> str:
    """What a strict mypy says of a script elsewhere."""
    (home / "consumer.py").write_text(script)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable"]
    python, cache = home / "bin" / "python", home / "cache"
    ran = subprocess.run(
        [*command, str(python), "--cache-dir", str(cache), "consumer.py"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_mypy_sees_the_types_from_outside(outside: Path) -> None:
    assert checked(outside, CONSUMER).startswith("Success")
    assert "Success" not in checked(outside, CONSUMER.replace("hardware=", "device="))
    said = checked(outside, CONSUMER.replace("prefetch_step=2", "prefetch_step='2'"))
    assert '"prefetch_step"' in said
    assert "Found 1 error" in said


def test_mypy_passes_the_librarys_examples_from_outside(outside: Path) -> None:
    page = (ROOT / "docs" / "library.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 6
    said = checked(outside, "\n".join(examples))
    assert said.startswith("Success"), said
