"""The entry module: when it thinks it was asked for, and that looking does no harm."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from vllm_layershard import plugin


@pytest.fixture(autouse=True)
def _installs(monkeypatch):
    """Nothing in the environment or on the command line of the tests themselves."""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.setattr(plugin, "_warned", False)


class Forwarding:
    """Like vLLM's WorkerWrapperBase: forwards what it lacks to a worker that it does not have."""

    def __getattr__(self, name):
        return getattr(self.worker, name)

    def load(self):
        return plugin._is_in_hand()


def test_a_caller_that_forwards_attributes_is_left_alone():
    assert Forwarding().load() is False


@pytest.mark.parametrize(
    ("additional_config", "asked"),
    [
        ({"layer_sharding": []}, True),
        ({"denseffn_tensor_parallel_size": 2}, True),
        ({"other": 1}, False),
        (None, False),
        ("text", False),
    ],
)
def test_the_configuration_in_a_callers_hand(additional_config, asked):
    class Config:
        def __init__(self):
            self.additional_config = additional_config

    def worker(vllm_config):
        def inner():
            return plugin._is_in_hand()

        return inner()

    assert worker(Config()) is asked


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], False),
        (["serve", "m"], False),
        (["--additional-config", '{"layer_sharding": ["o_proj"]}'], True),
        (['--additional-config={"layer_sharding": ["o_proj"]}'], True),
        (["--additional-config.layer-sharding+", "o_proj"], True),
        (["--additional-config", '{"denseffn_tensor_parallel_size": 8}'], True),
        (["--additional-config.denseffn-tensor-parallel-size", "8"], True),
        (["--config"], False),
        (["--config", "/no/such/file"], False),
    ],
)
def test_the_command_line(arguments, asked):
    assert plugin._is_on_command_line(arguments) is asked


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_the_file_that_config_names(tmp_path, form):
    file = tmp_path / "serve.yaml"
    file.write_text("additional-config:\n  layer_sharding: [o_proj]\n")
    assert plugin._is_on_command_line(form.format(file).split()) is True
    file.write_text("additional-config:\n  other: 1\n")
    assert plugin._is_on_command_line(form.format(file).split()) is False


@pytest.mark.parametrize(
    ("names", "asked"), [("layershard", True), ("a,layershard", True), ("a", False), ("", False)]
)
def test_vllm_plugins_by_name(monkeypatch, names, asked):
    monkeypatch.setenv("VLLM_PLUGINS", names)
    assert plugin._is_named() is asked


@pytest.fixture
def warnings(monkeypatch):
    """What `register` logs from here on."""
    logger = logging.getLogger("vllm.vllm_layershard.plugin")
    said = []
    monkeypatch.setattr(logger, "handle", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    return said


NEAR = ["layer_shardin", "layersharding", "LayerSharding", "layershard", "layer_sharing"]
FOREIGN = [
    "weight_prefetch_config",
    "gdn_prefill_backend",
    "weight_nz_mode",
    "finegrained_tp_config",
]
FOREIGN += [
    "lmhead_tensor_parallel_size",
    "oproj_tensor_parallel_size",
    "mlp_tensor_parallel_size",
    "embedding_tensor_parallel_size",
    "layer_stride",
    "enable_pcp_o_proj_weight_sharding",
    "multistream_overlap_shared_expert",
]


def command_line(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["vllm", "serve", "m", *arguments])


@pytest.mark.parametrize("key", NEAR)
@pytest.mark.parametrize(
    "form",
    [
        ["--additional-config", '{{"{}": ["o_proj"]}}'],
        ['--additional-config={{"{}": ["o_proj"]}}'],
        ['--additional_config={{"{}": ["o_proj"]}}'],
        ["--additional-config.{}+", "o_proj"],
        ["--additional-config.{}.layers+=o_proj"],
    ],
)
def test_a_near_key_on_the_command_line_is_warned_of_once(monkeypatch, warnings, form, key):
    command_line(monkeypatch, *(part.format(key) for part in form))
    plugin.register()
    plugin.register()
    (said,) = warnings
    assert repr(key) in said
    assert '{"layer_sharding": ["o_proj"]}' in said


NEAR_FFN = [
    "dense_ffn_tensor_parallel_size",
    "denseffn_tensor_parallel",
    "denseFFN-tensor-parallel-size",
    "densefn_tensor_parallel_size",
    "ffn_tensor_parallel_size",
]


@pytest.mark.parametrize("key", NEAR_FFN)
def test_a_key_near_the_other_one_is_warned_of_also_beside_layer_sharding(
    monkeypatch, warnings, key
):
    value = {"layer_sharding": ["o_proj"], key: 8}
    command_line(monkeypatch, "--additional-config", json.dumps(value))
    plugin._warn_of_near_keys(sys.argv[1:])
    (said,) = warnings
    assert said == (
        "No dense MLP is split: additional_config has no key 'denseffn_tensor_parallel_size', but "
        f'{key!r}; if that is meant, write {{"denseffn_tensor_parallel_size": 2}}'
    )


@pytest.mark.parametrize("key", [*NEAR_FFN, "denseffn_tensor_parallel_size"])
def test_a_key_of_one_kind_is_not_taken_for_the_other(monkeypatch, warnings, key):
    command_line(monkeypatch, "--additional-config", json.dumps({key: 8}))
    plugin._warn_of_near_keys(sys.argv[1:])
    assert not any("layer_sharding" in said for said in warnings)


@pytest.mark.parametrize("key", FOREIGN)
def test_keys_that_others_know_are_not_warned_of(monkeypatch, warnings, key):
    command_line(monkeypatch, "--additional-config", json.dumps({key: {"layer_shardin": 1}}))
    plugin.register()
    assert not warnings


@pytest.mark.parametrize(
    "value",
    ["", "{", "[1]", "null", '"layer_shardin"', '{"a": "layer_shardin"}', "{'layer_shardin': 1}"],
)
def test_other_values_are_left_to_vllm(monkeypatch, warnings, value):
    command_line(monkeypatch, "--additional-config", value)
    plugin.register()
    assert not warnings


def test_a_near_key_beside_the_right_one_is_not_warned_of(monkeypatch, warnings):
    value = {"layer_sharding": [], "layer_shardin": []}
    command_line(monkeypatch, "--additional-config", json.dumps(value))
    plugin._warn_of_near_keys(sys.argv[1:])
    assert not warnings


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("additional-config:\n  layer_shardin: [o_proj]\n", 1),
        ('additional_config: \'{"layer_shardin": ["o_proj"]}\'\n', 1),
        ("additional-config:\n  # layer_shardin: [o_proj]\n  other: 1\n", 0),
        ("additional-config:\n  layer_sharding: [o_proj]\n", 0),
        ("layer_shardin: 1\n", 0),
        ("layer-stride: 1\nadditional-config:\n  weight_prefetch_config: {enabled: true}\n", 0),
    ],
)
def test_a_near_key_in_the_file_that_config_names(monkeypatch, warnings, tmp_path, text, count):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    command_line(monkeypatch, "--config", str(file))
    plugin._warn_of_near_keys(sys.argv[1:])
    assert len(warnings) == count


class Arguments:
    """As EngineArgs: plugins are loaded while `self` holds the configuration."""

    def __init__(self, additional_config):
        self.additional_config = additional_config
        plugin.register()


def test_a_near_key_in_engine_arguments_is_warned_of_once(warnings):
    Arguments({"layer_shardin": ["o_proj"], 3: 4})
    Arguments({"layer_shardin": ["o_proj"]})
    assert len(warnings) == 1


def test_a_child_repeats_nothing_that_its_parent_has_said(monkeypatch, warnings):
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: object())
    key = {"layer_shardin": ["o_proj"]}

    def core(vllm_config):
        plugin.register()

    core(SimpleNamespace(additional_config=key))
    command_line(monkeypatch, "--additional-config", json.dumps(key))
    Arguments(key)
    assert not warnings
    command_line(monkeypatch)
    Arguments(key)
    assert len(warnings) == 1


BESIDE = {
    "move, move_weights_from: stands beside layer_sharding, where vLLM would not see it; write it "
    'into {"layer_sharding": {...}}': {"layer_sharding": [], "move": 1, "move_weights_from": 1},
    "placement: stands beside denseffn_tensor_parallel_size, where vLLM would not see it; write it "
    'into {"layer_sharding": {...}}': {"denseffn_tensor_parallel_size": 8, "placement": "striped"},
    "move_weight_from: stands beside layer_sharding, where vLLM would not see it; if "
    'move_weights_from is meant, write it into {"layer_sharding": {...}}': {
        "layer_sharding": {"layers": ["o_proj"], "move": "auto"},
        "move_weight_from": 300,
    },
}


@pytest.mark.parametrize("said", BESIDE)
def test_an_option_beside_the_key_is_warned_of_once_as_check_says_it(monkeypatch, warnings, said):
    command_line(monkeypatch, "--additional-config", json.dumps(BESIDE[said]))
    plugin._warn_of_near_keys(sys.argv[1:])
    plugin._warn_of_near_keys(sys.argv[1:])
    assert warnings == [said]


def test_an_option_beside_a_key_that_is_nearly_ours_is_warned_of_with_it(warnings):
    Arguments({"layer_shardings": ["o_proj"], "move": "auto"})
    slip, lost = warnings
    assert "no key 'layer_sharding', but 'layer_shardings'" in slip
    assert lost.startswith("move: stands beside layer_shardings, where vLLM would not see it; ")


@pytest.mark.parametrize("key", ["layer_size", "prefetch", "mover", "transports", *FOREIGN[:-3]])
def test_keys_of_other_plugins_beside_ours_are_not_warned_of(monkeypatch, warnings, key):
    value = {"layer_sharding": {"layers": ["o_proj"], "move": "auto"}, key: {"move": 1}}
    command_line(monkeypatch, "--additional-config", json.dumps(value))
    plugin._warn_of_near_keys(sys.argv[1:])
    assert not warnings


@pytest.mark.parametrize("key", ["move", "move_weights_from", "layers", "move_weight_from"])
def test_an_option_without_a_key_of_ours_is_another_plugins(monkeypatch, warnings, key):
    command_line(monkeypatch, "--additional-config", json.dumps({key: 1}))
    plugin.register()
    assert not warnings


def test_options_within_the_key_are_not_taken_for_others_in_a_file(monkeypatch, warnings, tmp_path):
    """A file is not parsed: its keys are of every level. What vLLM reads of it is."""
    file = tmp_path / "serve.yaml"
    file.write_text("additional-config:\n  layer_sharding:\n    move: auto\n    layers: [o_proj]\n")
    command_line(monkeypatch, "--config", str(file))
    plugin._warn_of_near_keys(sys.argv[1:])
    assert not warnings

    class Read:
        additional_config: ClassVar = {"layer_sharding": ["o_proj"], "move": "auto"}

        def load(self):
            plugin._warn_of_near_keys(sys.argv[1:])

    Read().load()
    assert len(warnings) == 1


def test_nothing_that_a_caller_holds_makes_it_raise(warnings):
    class Odd(dict):
        def __iter__(self):
            raise RuntimeError("no")

    Arguments(Odd(layer_shardin=1))
    assert not warnings


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "serve.yaml")
    return folder / "serve.yaml"


def sparse(folder: Path) -> Path:
    with open(folder / "serve.yaml", "wb") as file:
        file.truncate(2 << 30)
    return folder / "serve.yaml"


def link(target: str) -> Callable[[Path], Path]:
    def linked(folder: Path) -> Path:
        (folder / "serve.yaml").symlink_to(target)
        return folder / "serve.yaml"

    return linked


STRANGE = {
    "pipe": pipe,
    "sparse file of 2 GiB": sparse,
    "link to the standard input": link("/dev/stdin"),
    "link to a device": link("/dev/zero"),
    "the standard input": lambda folder: Path("/dev/stdin"),
    "a device": lambda folder: Path("/dev/zero"),
    "directory": lambda folder: folder,
    "link to itself": lambda folder: link(str(folder / "serve.yaml"))(folder),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_config_file_that_is_none_is_not_read(tmp_path, kind):
    """Work is bounded, not time: at most a mebibyte is read, and nothing of the standard input."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from vllm_layershard import plugin
plugin.register()
print([m for m in sys.modules if m.startswith("vllm_layershard.")], sys.stdin.read())
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, "--config", str(STRANGE[kind](tmp_path))],
        input="all of it",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stdout == "['vllm_layershard.plugin'] all of it\n", finished.stderr[-2000:]


def test_a_config_file_of_more_than_a_mebibyte_is_left_to_vllm(tmp_path):
    file = tmp_path / "serve.yaml"
    text = "additional-config:\n  layer_sharding: [o_proj]\n"
    file.write_text(text + "#" * ((1 << 20) - len(text)))
    assert plugin._is_on_command_line(["--config", str(file)]) is True
    file.write_text(text + "#" * ((1 << 20) - len(text) + 1))
    assert plugin._is_on_command_line(["--config", str(file)]) is False


def test_a_config_file_of_another_kind_is_another_programs(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('layer_sharding = "theirs"\n')
    assert plugin._is_on_command_line(["--config", str(file)]) is False


def test_deep_json_is_left_to_vllm(monkeypatch, warnings):
    command_line(monkeypatch, "--additional-config", "[" * 100_000)
    plugin.register()
    assert not warnings


def test_one_long_word_takes_no_more_looks_than_it_has_letters():
    """A search that began anew at each letter would take hours here."""
    text = "additional-config:\n  " + "a" * (1 << 20)
    assert plugin._keys_in_file(text) == set()
