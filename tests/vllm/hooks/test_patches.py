"""Patches: each has its row in the docs, each is inert without the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hosted.child import run_child
from vllm_layershard.errors import HostError
from vllm_layershard.hosts import cpu_dp
from vllm_layershard.hosts import patches as install
from vllm_layershard.hosts.exchange import construction
from vllm_layershard.hosts.graphs import fusions, inductor, peers
from vllm_layershard.hosts.patch import Patch
from vllm_layershard.hosts.reload import guard, process_checkpoints

DOCS = Path(__file__).parents[3] / "docs" / "patches.md"


def test_the_table_in_the_docs_is_the_patches():
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in DOCS.read_text().splitlines()
        if line.startswith("| `")
    ]
    expected = [
        (f"`{patch.symbol}`", patch.versions, f"`{entry}`", patch.reason, patch.removal)
        for entry, patches in (
            (
                "layershard",
                (
                    *install.PATCHES,
                    *guard.PATCHES,
                    *peers.PATCHES,
                    process_checkpoints.PATCH,
                    *fusions.PATCHES,
                    *construction.PATCHES,
                    *inductor.PATCHES,
                ),
            ),
            ("layershard_cpu_dp", cpu_dp.PATCHES),
        )
        for patch in patches
    ]
    assert rows == expected


def test_a_symbol_that_the_host_lacks_is_named():
    said = run_child(
        """
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.patch import Patch
try:
    Patch("vllm.config", "VllmConfig", "no_such_hook", "0.1", "", "", lambda f: f).install()
except HostError as error:
    result = str(error)
"""
    )
    assert "vllm has no vllm.config.VllmConfig.no_such_hook" in said


class Bare:
    """A class that defines nothing."""


@pytest.mark.parametrize("attribute", ["__call__", "__init__"])
def test_what_every_class_has_is_no_symbol_of_its_own(attribute):
    patch = Patch(__name__, "Bare", attribute, "0.1", "", "", lambda original: original)
    with pytest.raises(HostError, match=rf" has no {__name__}.Bare.{attribute}: "):
        patch.install()


def test_installed_twice_is_installed_once_and_inert_without_the_key():
    assert run_child(
        """
from vllm_layershard.hosts.patches import PATCHES, install
calls = []
def initialize_model(vllm_config, **kwargs):
    calls.append(sorted(kwargs)); return "a model"
import vllm.model_executor.model_loader.base_loader as loader
loader.initialize_model = initialize_model
loader.log_online_quantization = loader.log_model_inspection = lambda *a: None
originals = [getattr(p._owner(), p.attribute) for p in PATCHES]
install(); install()
from vllm.config import VllmConfig
config = VllmConfig(additional_config={"other": 1})
model = loader.BaseModelLoader.create_model(None, config, config.model_config)
import sys
result = {
    "wrapped_once": [
        getattr(p._owner(), p.attribute).__layershard_original__ is original
        for p, original in zip(PATCHES, originals)
    ],
    "calls": calls,
    "model": model,
    "sharding_imported": "vllm_layershard.hosts.model" in sys.modules,
}
"""
    ) == {
        "wrapped_once": [True, True],
        "calls": [["model_config", "prefix"]],
        "model": "a model",
        "sharding_imported": False,
    }


def test_a_class_is_as_it_was_after_a_patch_in_force_whoever_has_the_symbol():
    assert (
        run_child(
            """
import inspect
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm_layershard.hosts.patch import Patch, is_replaced
class Inherits(RowParallelLinear):
    pass
class HasItsOwn(RowParallelLinear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
patch = Patch("vllm.model_executor.layers.linear", "RowParallelLinear", "__init__", "", "", "",
              lambda original: lambda self, *args, **kwargs: None)
result = []
for owner in (RowParallelLinear, Inherits, HasItsOwn):
    before = dict(vars(owner))
    seen = inspect.signature(owner.__init__)
    try:
        with patch.in_force(owner):
            there = is_replaced(owner.__init__)
            same = inspect.signature(owner.__init__) == seen
            others = [is_replaced(c.__init__) for c in (RowParallelLinear, HasItsOwn)
                      if c is not owner]
            raise KeyError
    except KeyError:
        pass
    result.append([there, same, any(others), dict(vars(owner)) == before])
"""
        )
        == [[True, True, False, True]] * 3
    )
