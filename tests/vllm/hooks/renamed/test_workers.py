"""What a worker replaces is gone in a later host: an error names it, whatever it is.

Not `RowParallelLinear`, which is imported by name: without it no module of the host's is imported.
"""

from __future__ import annotations

import pytest

from hosted.child import run_child
from vllm_layershard.hosts.graphs import fusions, peers
from vllm_layershard.hosts.reload import guard, process_checkpoints

REPLACE = {
    guard: "guard.guard_reloads()",
    process_checkpoints: "process_checkpoints.refuse_checkpoints(nn.Linear(1, 1))",
    peers: "peers.check_steps(kind)",
    fusions: "fusions.keep_fusions(compiled)",
}
"""What a worker calls to have each of them replaced."""

PATCHES = [
    *((patch, REPLACE[guard]) for patch in guard.PATCHES),
    *((patch, REPLACE[peers]) for patch in peers.PATCHES),
    (process_checkpoints.PATCH, REPLACE[process_checkpoints]),
    *((patch, REPLACE[fusions]) for patch in fusions.PATCHES),
]
ALL = pytest.mark.parametrize(
    ("patch", "replace"), PATCHES, ids=[patch.symbol for patch, _ in PATCHES]
)

GONE = """
import importlib, sys
from types import ModuleType, SimpleNamespace
from torch import nn
from vllm.config import CompilationMode
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.graphs import fusions, peers
from vllm_layershard.hosts.reload import guard, process_checkpoints

gone, module, owner, attribute = sys.argv[1:5]
kind = "npu" if module.startswith("vllm_ascend") else "cuda"
compiled = SimpleNamespace(
    compilation_config=SimpleNamespace(mode=CompilationMode.VLLM_COMPILE)
)
if kind == "npu":  # it cannot be installed beside vLLM for the CPU
    for patch in peers.PATCHES:
        if patch.host == "vllm_ascend":
            stands = ModuleType(patch.module)
            there = type(patch.owner, (), {patch.attribute: lambda self: None})
            setattr(stands, patch.owner, there)
            sys.modules[patch.module] = stands
if gone == "module":
    sys.modules[module] = None  # neither found nor imported
else:
    found = getattr(importlib.import_module(module), owner)
    for base in found.__mro__:
        if attribute in vars(base) and base is not object:
            delattr(base, attribute)
"""

CALLED = """
try:
    {}
    result = "replaced"
except HostError as error:
    result = str(error)
"""


def called(patch, replace: str, gone: str) -> str:
    code = GONE + CALLED.format(replace)
    return run_child(code, gone, patch.module, patch.owner, patch.attribute)


@ALL
@pytest.mark.parametrize("gone", ["symbol", "module"])
def test_what_is_gone_is_named(patch, replace, gone):
    said = called(patch, replace, gone)
    named = patch.module if gone == "module" else patch.symbol
    assert said.startswith(f"{patch.host} has no {named}: ")
    assert f"was written for {patch.host} {patch.versions}; install one of these" in said


LATER = """
import sys
from pathlib import Path
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.graphs.peers import PATCHES, check_steps

folder = Path(sys.argv[1])
for patch in PATCHES:
    if patch.host == "vllm_ascend":
        *packages, name = patch.module.split(".")
        where = folder.joinpath(*packages)
        where.mkdir(parents=True, exist_ok=True)
        for package in (where, *where.relative_to(folder).parents):
            (folder / package / "__init__.py").touch()
        (where / f"{name}.py").write_text(f"class {patch.owner}: renamed = 1\\n")
sys.path.insert(0, str(folder))
check_steps("npu")  # nothing is imported yet
result = []
for patch in PATCHES:
    if patch.host == "vllm_ascend":
        try:
            __import__(patch.module)
        except HostError as error:
            result.append([patch.symbol, str(error)])
"""


def test_of_a_module_that_is_imported_later_it_is_named_then(tmp_path):
    found = run_child(LATER, str(tmp_path))
    assert len(found) == 3
    for symbol, said in found:
        assert said.startswith(f"vllm_ascend has no {symbol}: ")


COMPILER = """
import logging, sys
said = []
class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
from vllm_layershard.hosts.graphs.inductor import PATCHES, remember_writers
from vllm.config import VllmConfig
config = VllmConfig()
config.compilation_config.mode = 3
logging.getLogger("vllm").handlers = [Said(logging.WARNING)]
logging.getLogger("vllm").setLevel(logging.WARNING)
(patch,) = PATCHES
sys.modules[patch.module] = None
remember_writers(config)
result = said
"""


def test_of_torchs_compiler_it_is_a_warning_and_its_order_is_its_own():
    """A later torch has been mended: there is nothing to refuse."""
    (said,) = run_child(COMPILER)
    assert said.startswith("The order of a compiled model's ops is torch's own: torch has no ")


PARAMETERS = """
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.reload.guard import guard_reloads

def reload_weights(self, weights_iterator=None, weights_path=None, in_checkpoint_format=True):
    pass

reload_weights.__module__ = "vllm.v1.worker.gpu_model_runner"
reload_weights.__qualname__ = "GPUModelRunner.reload_weights"
GPUModelRunner.reload_weights = reload_weights
try:
    guard_reloads()
    result = "guarded"
except HostError as error:
    result = str(error)
"""


def test_a_parameter_that_a_reload_is_judged_by_is_named():
    """Else `is_checkpoint_format=False` would be taken for a reload from a checkpoint."""
    said = run_child(PARAMETERS)
    assert said.startswith(
        "vllm has no vllm.v1.worker.gpu_model_runner.GPUModelRunner.reload_weights"
        "(is_checkpoint_format=): "
    )


HANDED_ON = """
from contextlib import contextmanager
from types import SimpleNamespace
from torch import nn
from vllm.v1.worker.gpu import model_runner as newer
from vllm.v1.worker import gpu_model_runner as older
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.reload import guard

entered = []

class Reloads:
    @contextmanager
    def reloading(self, checkpoint):
        entered.append(checkpoint())
        yield

def reload_weights(self, weights_iterator=None, weights_path=None, is_checkpoint_format=True):
    entered.append("reloaded")

def hand_on(self, *args, **kwargs):
    older.GPUModelRunner.reload_weights(self, *args, **kwargs)

older.GPUModelRunner.reload_weights = reload_weights
newer.GPUModelRunner.reload_weights = hand_on  # as up to vLLM 0.31
guard.guard_reloads()
model = nn.Linear(1, 1)
guard.reload_together(model, Reloads())
runner = SimpleNamespace(get_model=lambda: model)
newer.GPUModelRunner.reload_weights(runner, weights_iterator=())
result = [entered]
try:
    newer.GPUModelRunner.reload_weights(runner, is_checkpoint_format=False)
except HostError as error:
    result.append(str(error))
"""


def test_a_runner_that_hands_a_reload_on_to_the_other_is_not_guarded_twice():
    entered, said = run_child(HANDED_ON)
    assert entered == ["weights_iterator", "reloaded"]
    assert said.startswith("layer_sharding: with is_checkpoint_format=False vLLM writes")
