"""What importing costs: the planner's half needs neither torch nor vLLM, the entry module nothing.

Each case is a process of its own, because this one may have imported anything already.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "vllm", "vllm_ascend", "transformers"}
PLANNER = [
    "vllm_layershard",
    "vllm_layershard.errors",
    "vllm_layershard.config",
    "vllm_layershard.plan",
    "vllm_layershard.models",
    "vllm_layershard.estimate",
    "vllm_layershard.planner",
    "layershard_cli",
]

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""
IMPORT_ALL = """
import importlib, json, pkgutil

def modules(name):
    module = importlib.import_module(name)
    yield name
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
            yield found.name

print(json.dumps([found for name in {names!r} for found in modules(name)]))
"""
IMPORT = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module({name!r})
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def run(script: str) -> list[str]:
    """What a fresh interpreter prints, from the root of the repository."""
    paths = f"import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / 'cli')]!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", paths + script], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_module_of_the_planner_imports_with_torch_and_vllm_blocked():
    # vllm_layershard itself is walked by name: its runtime, hosts and plugin are not the planner.
    below = [name for name in PLANNER if name != "vllm_layershard"]
    script = BLOCKED.format(blocked=HEAVY) + IMPORT_ALL.format(names=below)
    found = run("import vllm_layershard\n" + script)
    assert set(below) <= set(found)
    assert "layershard_cli.main" in found
    assert "vllm_layershard.plan.schedule" in found


def test_the_manual_api_and_the_runtime_need_torch_alone():
    """On a machine with a GPU there may be torch and nothing else: `make test-gpu`."""
    others = {"vllm", "vllm_ascend", "pydantic", "pytest", "rich", "typer"}
    names = ["vllm_layershard.manual", "vllm_layershard.runtime"]
    script = BLOCKED.format(blocked=others) + IMPORT_ALL.format(names=names)
    assert "vllm_layershard.manual.functions" in run(script)
    refused = (
        "import vllm_layershard.manual.arguments as arguments, json\n"
        "config = arguments.config_of(prefetch_step=2, placement='striped')\n"
        "try:\n    arguments.config_of(placement='nowhere')\n"
        "except arguments.ConfigError as error:\n    said = str(error)\n"
        "print(json.dumps([config.placement, said]))"
    )
    placement, said = run(BLOCKED.format(blocked=others) + refused)
    assert placement == "striped"
    assert "placement = 'nowhere': is not known" in said


def test_the_blocker_blocks():
    with pytest.raises(AssertionError, match="torch is blocked"):
        run(BLOCKED.format(blocked=HEAVY) + IMPORT.format(name="torch"))


@pytest.mark.parametrize("name", PLANNER)
def test_none_of_the_planner_tries_torch_or_vllm(name):
    """Not even in a `try`: the modules loaded are looked at, with nothing blocked."""
    assert not {module.partition(".")[0] for module in run(IMPORT.format(name=name))} & HEAVY


@pytest.mark.parametrize("name", ["vllm_layershard.plugin", "vllm_layershard.cpu_dp_plugin"])
def test_an_entry_module_imports_itself_and_the_standard_library_only(name):
    """vLLM imports it in every process, whether or not layer sharding is asked for."""
    tops = {module.partition(".")[0] for module in run(IMPORT.format(name=name))}
    assert tops - sys.stdlib_module_names == {"vllm_layershard"}


def test_an_entry_module_brings_nothing_else_of_the_package():
    loaded = run(IMPORT.format(name="vllm_layershard.plugin"))
    own = [module for module in loaded if module.startswith("vllm_layershard")]
    assert own == ["vllm_layershard", "vllm_layershard.plugin"]


START = """
import json, sys
from layershard_cli.main import run
own = ("layershard_cli", "vllm_layershard")
sys.argv[1:] = {words!r}
stdout, sys.stdout = sys.stdout, sys.stderr
try:
    run()
except SystemExit as ended:
    assert not ended.code
found = sorted(name for name in sys.modules if name.partition(".")[0] in own)
print(json.dumps(found), file=stdout)
"""


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--help"], 8),
        (["plan", "--model", "DeepSeek-V3"], 120),
        (["plan", "--model", "DeepSeek-V3", "--json"], 118),
    ],
)
def test_a_start_imports_so_many_modules_of_ours_at_most(words, most):
    """What a start takes follows from it. Raise the number only with what a plan really needs."""
    found = run(START.format(words=words))
    assert len(found) <= most, found


def test_every_package_and_module_stands_in_a_layers_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    named = {name.strip() for lines in layers for line in lines for name in line.split("|")}
    found = {f"vllm_layershard.{m.name}" for m in pkgutil.iter_modules([ROOT / "vllm_layershard"])}
    assert found | {"layershard_cli"} == named


CIRCLES = {
    "none": ("from planted import b", "VALUE = 1", True),
    "lazy": ("from planted import b", "def use():\n    from planted import a\n    return a", False),
    "typing": (
        "from planted import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted import a",
        False,
    ),
    "both lazy": (
        "def use():\n    from planted import b\n    return b",
        "def use():\n    from planted import a\n    return a",
        False,
    ),
    "lazy, one way": ("def use():\n    from planted import b\n    return b", "VALUE = 1", True),
}


@pytest.mark.parametrize("case", CIRCLES)
def test_lint_finds_a_planted_circle_and_nothing_else(case, tmp_path):
    """The contract of pyproject.toml itself, on a package of two files."""
    one, other, kept = CIRCLES[case]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [c for c in contracts["contracts"] if c["type"] == "acyclic_siblings"]
    assert set(contract["ancestors"]) == set(contracts["root_packages"])
    package = tmp_path / "planted"
    package.mkdir()
    for name, text in (("__init__", ""), ("a", one), ("b", other)):
        (package / f"{name}.py").write_text(f"{text}\n")
    config = tmp_path / "lint.toml"
    config.write_text(
        '[tool.importlinter]\nroot_packages = ["planted"]\n[[tool.importlinter.contracts]]\n'
        f'name = "planted"\ntype = "{contract["type"]}"\nancestors = ["planted"]\n'
        f"depth = {contract['depth']}\n"
    )
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [*command, "--config", str(config)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("1 kept, 0 broken" in ran.stdout) == kept, ran.stdout + ran.stderr
    assert ("0 kept, 1 broken" in ran.stdout) == (not kept)


def test_no_module_imports_the_package_that_it_stands_in():
    """What the contract cannot see: a file and its own folder's `__init__.py`."""
    graph = grimp.build_graph("vllm_layershard", "layershard_cli", cache_dir=None)
    for module in graph.modules:
        above = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        bound = {name for name in above if graph.find_modules_directly_imported_by(name)}
        assert not graph.find_modules_directly_imported_by(module) & bound, module


RUNS_CODE = {
    "pickle": "import pickle\n\nprint(pickle.loads)\n",
    "a collective of objects": "from torch.distributed import all_gather_object as a\n\nprint(a)\n",
    "torch.load": "from torch import load\n\nprint(load)\n",
}


@pytest.mark.parametrize("kind", RUNS_CODE)
def test_lint_finds_a_message_that_may_run_code(tmp_path, kind):
    planted = ROOT / "vllm_layershard" / "planted.py"  # its name alone: nothing is written there
    finished = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(planted), "-"],
        input=RUNS_CODE[kind],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 1
    assert "TID251" in finished.stdout
