"""Where vLLM forks streams within a graph, no wait of ours may end that graph.

Its `maybe_execute_in_parallel` forks nothing while breakable graphs are captured. Its
`execute_in_parallel` does: a linear that runs meanwhile could not wait for its weight. In vLLM 0.32
DeepSeek-V4 and V4.1 alone call it, and their decoder layers are refused for want of a boundary.
Whoever gives them one has their attention wait at its entry: see hosts/graphs/hidden.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import vllm
from torch import nn

from vllm_layershard.errors import HostError
from vllm_layershard.hosts.boundary import check_boundary

ROOT = Path(vllm.__file__).parent
CALLED = "execute_in_parallel"


def calls_it(path: Path) -> bool:
    """Whether the file calls the function that forks in every capture."""
    text = path.read_text()
    return CALLED in text and any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == CALLED
        for node in ast.walk(ast.parse(text))
    )


def forking() -> set[str]:
    """The packages of vLLM's models that call it, and other files that do."""
    calling = (path.relative_to(ROOT) for path in ROOT.rglob("*.py") if calls_it(path))
    return {
        "/".join(path.parts[:2]) if path.parts[0] == "models" else str(path) for path in calling
    }


def arguments_of_layers(package: Path) -> dict[str, list[str]]:
    """Of each decoder layer's class in the package the names of what its forward takes."""
    return {
        f"{path.relative_to(package)}: {each.name}": [given.arg for given in method.args.args]
        for path in package.rglob("*.py")
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.ClassDef) and each.name.endswith("DecoderLayer")
        for method in each.body
        if isinstance(method, ast.FunctionDef) and method.name == "forward"
    }


def test_models_that_fork_while_graphs_are_captured_have_no_boundary():
    assert forking() == {"models/deepseek_v4", "models/deepseek_v41"}
    for package in forking():
        found = arguments_of_layers(ROOT / package)
        assert found
        for layer, given in found.items():
            assert "hidden_states" not in given, layer


def test_a_layer_without_a_known_activation_is_refused_by_name():
    class DeepseekV4DecoderLayer(nn.Module):
        def forward(self, x: object, positions: object) -> None:
            """As vLLM's takes them."""

    with pytest.raises(HostError, match=r"DecoderLayer\.forward takes no hidden_states"):
        check_boundary(DeepseekV4DecoderLayer())
