"""Off means off: without the key nothing of the sharding is patched or imported."""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child, run_fresh
from hosted.tiny import CONFIG, write_config

LOAD = """
import sys
import vllm.config, vllm.engine.arg_utils, vllm.model_executor.model_loader.base_loader
import vllm.model_executor.layers.linear, vllm.distributed.parallel_state
import vllm.distributed.device_communicators.cpu_communicator
import vllm.model_executor.layers.fused_moe.runner.moe_runner
from vllm.plugins import load_general_plugins

def symbols():
    seen = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("vllm.") or module is None:
            continue
        for key, value in list(vars(module).items()):
            seen[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__.startswith("vllm."):
                for member, held in list(vars(value).items()):
                    if callable(held):
                        seen[f"{value.__module__}.{value.__qualname__}.{member}"] = id(held)
    return seen

before, loaded = symbols(), set(sys.modules)
"""
COMPARE = """
after = symbols()
result = {
    "patched": sorted(
        key for key, value in before.items()
        if after.get(key) != value and key != "vllm.plugins.plugins_loaded"
    ),
    "imported": sorted(m for m in set(sys.modules) - loaded if m.startswith("vllm_layershard")),
}
"""
SHARDING = {
    "vllm.config.vllm.VllmConfig.__post_init__",
    "vllm.model_executor.model_loader.base_loader.initialize_model",
}


def engine_args(tmp_path, additional: str) -> str:
    model = write_config(tmp_path / "model", CONFIG)
    return f"""
from vllm.engine.arg_utils import EngineArgs
EngineArgs(model={str(model)!r}, additional_config={additional})
"""


@pytest.mark.parametrize("run", [run_child, run_fresh])
def test_without_the_key_nothing_is_patched_and_only_the_entry_module_imported(run):
    seen = run(LOAD + "load_general_plugins()" + COMPARE, VLLM_PLUGINS="layershard_cpu_dp")
    cpu_dp_alone = seen["patched"]
    seen = run(LOAD + "load_general_plugins()" + COMPARE)
    assert seen["patched"] == cpu_dp_alone
    assert not SHARDING & set(seen["patched"])
    assert [m for m in seen["imported"] if "plugin" in m] == [
        "vllm_layershard.cpu_dp_plugin",
        "vllm_layershard.plugin",
    ]
    assert not [m for m in seen["imported"] if "runtime" in m or "config" in m or "plan" in m]


def test_vllm_plugins_without_its_name_disables_it():
    key = json.dumps({"layer_sharding": ["o_proj"]})
    code = LOAD + "load_general_plugins()" + COMPARE
    assert run_child(code, key, VLLM_PLUGINS="") == {"patched": [], "imported": []}


def test_the_cpu_plugin_adds_only_what_the_cpu_backend_lacks():
    seen = run_child(LOAD + "load_general_plugins()" + COMPARE, VLLM_PLUGINS="layershard_cpu_dp")
    assert [s for s in seen["patched"] if not s.endswith("_select_forward")] == []
    added = run_child(
        LOAD
        + """
load_general_plugins()
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
added = "__layershard_original__"
result = sorted(name for name, held in vars(CpuCommunicator).items() if hasattr(held, added))
""",
        VLLM_PLUGINS="layershard_cpu_dp",
    )
    assert added == ["all_gatherv", "reduce_scatterv"]


@pytest.mark.parametrize("how", ["argument", "config file", "engine arguments", "by name"])
def test_however_it_is_asked_for_it_is_installed(tmp_path, how):
    key = {"layer_sharding": ["o_proj"]}
    load, arguments, environment = "load_general_plugins()", [], {}
    if how == "argument":
        arguments = ["serve", "m", "--additional-config", json.dumps(key)]
    elif how == "config file":
        file = tmp_path / "serve.yaml"
        file.write_text(f"additional-config: '{json.dumps(key)}'\n")
        arguments = ["serve", "m", "--config", str(file)]
    elif how == "engine arguments":
        load = engine_args(tmp_path, repr(key))
    else:
        environment = {"VLLM_PLUGINS": "layershard"}
    seen = run_child(LOAD + load + COMPARE, *arguments, **environment)
    assert set(seen["patched"]) >= SHARDING, seen["patched"]


def test_engine_arguments_without_the_key_install_nothing(tmp_path):
    seen = run_child(LOAD + engine_args(tmp_path, "{'other': 1}") + COMPARE)
    assert not SHARDING & set(seen["patched"])
