"""The entry module: when it thinks it was asked for, and that looking does no harm."""

from __future__ import annotations

import pytest

from vllm_layershard import plugin


@pytest.fixture(autouse=True)
def _installs(monkeypatch):
    """Nothing in the environment or on the command line of the tests themselves."""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr("sys.argv", ["pytest"])


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
    [({"layer_sharding": []}, True), ({"other": 1}, False), (None, False), ("text", False)],
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
