"""A vLLM that has renamed a symbol: with the key an error names it, without it nothing ends."""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child, run_fresh
from hosted.tiny import CONFIG, write_config
from vllm_layershard.hosts import cpu_dp, patches

KEY = {"layer_sharding": ["o_proj"]}

RENAME = """
import importlib, logging
from types import SimpleNamespace

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

said = []
import vllm.config, vllm.engine.arg_utils
logger = logging.getLogger("vllm")
logger.handlers = [Said(logging.WARNING)]
logger.setLevel(logging.WARNING)
for name in {modules!r}:
    module = importlib.import_module(name)
module, owner, attribute = {symbol!r}
module = importlib.import_module(module)
owner = getattr(module, owner) if owner else module
for base in getattr(owner, "__mro__", [owner]):
    if attribute in vars(base) and base is not object:
        delattr(base, attribute)

def load(additional_config):
    vllm_config = SimpleNamespace(additional_config=additional_config)
    from vllm.plugins import load_general_plugins
    try:
        load_general_plugins()
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
    return "loaded"
"""


def renamed(patch) -> str:
    modules = sorted({each.module for each in (*patches.PATCHES, *cpu_dp.PATCHES)})
    return RENAME.format(symbol=(patch.module, patch.owner, patch.attribute), modules=modules)


SHARDING = pytest.mark.parametrize("patch", patches.PATCHES, ids=lambda patch: patch.attribute)
ON_A_CPU = pytest.mark.parametrize("patch", cpu_dp.PATCHES, ids=lambda patch: patch.attribute)


@SHARDING
def test_without_the_key_no_process_ends_and_only_one_that_names_the_plugin_is_warned(patch):
    ask = "\nresult = [load({}), [s for s in said if 'ayer sharding' in s]]"
    assert run_child(renamed(patch) + ask) == ["loaded", []]
    loaded, (said,) = run_child(renamed(patch) + ask, VLLM_PLUGINS="layershard")
    assert loaded == "loaded"
    assert f"vllm has no {patch.symbol}" in said


@SHARDING
@pytest.mark.parametrize(("how", "named"), [("in hand", False), ("on the command line", True)])
def test_with_the_key_it_is_an_error(patch, how, named):
    arguments = ["--additional-config", json.dumps(KEY)] if how == "on the command line" else []
    ask = f"\nresult = load({ {} if arguments else KEY!r})"
    environment = {"VLLM_PLUGINS": "layershard"} if named else {}
    said = run_child(renamed(patch) + ask, *arguments, **environment)
    assert said.startswith(f"HostError: vllm has no {patch.symbol}: ")


def test_by_name_alone_the_error_comes_with_the_configuration():
    """The process was warned, and went on; here it is given the key after all."""
    (patch,) = (each for each in patches.PATCHES if each.attribute == "initialize_model")
    code = (
        renamed(patch)
        + f"""
loaded = load({{}})
try:
    vllm.config.VllmConfig(additional_config={KEY!r})
except Exception as error:
    result = [loaded, type(error).__name__, str(error)]
"""
    )
    loaded, name, said = run_child(code, VLLM_PLUGINS="layershard")
    assert (loaded, name) == ("loaded", "HostError")
    assert f"vllm has no {patch.symbol}" in said


@ON_A_CPU
def test_a_server_on_a_cpu_goes_on_without_what_it_may_not_need(patch):
    loaded, said = run_child(renamed(patch) + "\nresult = [load({}), said]")
    assert loaded == "loaded"
    named = [line for line in said if "data parallelism" in line.lower()]
    assert len(named) <= 1, named
    # Their base class has the communicator's two: without both there is nothing to replace.
    assert named, said
    assert f"vllm has no {patch.symbol}" in named[0]


@ON_A_CPU
def test_layer_sharding_among_data_parallel_ranks_on_a_cpu_needs_it(tmp_path, patch):
    """Refused before a worker starts, where vLLM would fail in its first exchange."""
    model = write_config(tmp_path / "model", CONFIG)
    code = f"""
from vllm.engine.arg_utils import EngineArgs
try:
    EngineArgs(
        model={str(model)!r}, skip_tokenizer_init=True, data_parallel_size=2,
        additional_config={KEY!r},
    ).create_engine_config()
    result = "accepted"
except Exception as error:
    result = f"{{type(error).__name__}}: {{error}}"
"""
    assert run_child(code) == "accepted"
    assert f"vllm has no {patch.symbol}" in run_child(renamed(patch) + code)


def test_the_cpu_entry_point_imports_nothing_and_patches_what_vllm_imports_later():
    code = """
import sys
import vllm.platforms
before = set(sys.modules)
from vllm_layershard import cpu_dp_plugin
cpu_dp_plugin.register()
added = sorted(m for m in set(sys.modules) - before if not m.startswith("vllm_layershard"))
own = sorted(m for m in set(sys.modules) - before if m.startswith("vllm_layershard"))
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
mark = "__layershard_original__"
result = {
    "added": [m for m in added if m.split(".")[0] not in sys.stdlib_module_names],
    "own": own,
    "patched": [
        hasattr(vars(CpuCommunicator).get("all_gatherv"), mark),
        hasattr(vars(CpuCommunicator).get("reduce_scatterv"), mark),
        hasattr(MoERunner._select_forward, mark),
    ],
    "watchers": [type(finder).__name__ for finder in sys.meta_path if "Watcher" in repr(finder)],
    "source": "class CpuCommunicator" in __import__("inspect").getsource(CpuCommunicator),
}
"""
    assert run_fresh(code) == {
        "added": [],
        "own": [
            "vllm_layershard",
            "vllm_layershard.cpu_dp_plugin",
            "vllm_layershard.hosts",
            "vllm_layershard.hosts.after_import",
        ],
        "patched": [True, True, True],
        "watchers": [],
        "source": True,
    }


def test_the_modules_that_are_watched_are_those_that_are_patched():
    from vllm_layershard.cpu_dp_plugin import MODULES

    assert set(MODULES) == {patch.module for patch in cpu_dp.PATCHES}
