"""Where a model's config.json is looked for, and in which order."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import provenance_page
from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models import bundled_names, find, read_model
from vllm_layershard.models.sources import source
from vllm_layershard.models.sources.provenance import PROVENANCE

V3 = (source._BUNDLED / "deepseek-ai--DeepSeek-V3.json").read_text()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["DeepSeek-V3", "deepseek-v3", "DEEPSEEK-AI/deepseek-V3"])
def test_bundled_in_any_case(name: str) -> None:
    found = find(name)
    assert (found.name, found.source) == (
        "deepseek-ai/DeepSeek-V3",
        "bundled:deepseek-ai/DeepSeek-V3",
    )


def test_a_local_directory_wins_over_a_bundled_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DeepSeek-V3").mkdir()
    with pytest.raises(UnknownModelError, match=r"holds no config\.json"):
        find("DeepSeek-V3")
    (tmp_path / "DeepSeek-V3" / "config.json").write_text(V3)
    assert find("DeepSeek-V3").source.startswith("local:")


def test_the_cache_is_asked_before_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789abcdef\n")
    snapshot = repository / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(V3)
    assert find("some/model").source == "cache:some/model@0123456789ab"


def cached(place: Path, name: str, revision: str, config: str = V3) -> None:
    repository = place / "cache" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision.strip()
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(config)


@pytest.mark.parametrize("name", ["DeepSeek-V3", "deepseek-v3", "DeepSeek-AI/deepseek-v3"])
def test_the_cache_is_asked_before_the_bundle_by_full_name(tmp_path: Path, name: str) -> None:
    cached(tmp_path, "DeepSeek-V3", "fedcba9876543210")
    assert find(name).source == "bundled:deepseek-ai/DeepSeek-V3"
    cached(tmp_path, "deepseek-ai/DeepSeek-V3", "0123456789abcdef")
    found = find(name)
    assert found.name == "deepseek-ai/DeepSeek-V3"
    assert found.source == "cache:deepseek-ai/DeepSeek-V3@0123456789ab"
    assert found.revision == "0123456789abcdef"
    assert found.directory is not None


def test_a_local_path_is_asked_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, "some/model", "0123456789abcdef")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "some" / "model" / "config.json").write_text(V3)
    found = find("some/model")
    assert (found.source, found.revision) == ("local:some/model/config.json", None)


@pytest.mark.parametrize("revision", ["..", "../../../..", "", "a/b", "x" * 300, "\x00"])
def test_a_revision_that_is_none_is_not_followed(tmp_path: Path, revision: str) -> None:
    cached(tmp_path, "deepseek-ai/DeepSeek-V3", "0123456789abcdef")
    repository = tmp_path / "cache" / "models--deepseek-ai--DeepSeek-V3"
    (repository / "refs" / "main").write_text(revision)
    for place in (repository, repository / "snapshots", tmp_path):
        (place / "config.json").write_text("broken")
    assert find("DeepSeek-V3").source == "bundled:deepseek-ai/DeepSeek-V3"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"])
def test_where_the_cache_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    cached(tmp_path, "some/model", "0123456789abcdef")
    (tmp_path / "cache").rename(tmp_path / "hub")
    monkeypatch.setenv(variable, str(tmp_path if variable == "HF_HOME" else tmp_path / "hub"))
    assert find("some/model").source == "cache:some/model@0123456789ab"


def test_a_cache_of_nobody_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "~nobody-of-that-name/cache")
    assert find("DeepSeek-V3").source.startswith("bundled:")


def test_a_broken_config_in_the_cache_is_said(tmp_path: Path) -> None:
    cached(tmp_path, "deepseek-ai/DeepSeek-V3", "0123456789abcdef", "{")
    with pytest.raises(ModelError, match=r"0123456789abcdef/config\.json: is not valid JSON"):
        find("DeepSeek-V3")


@pytest.mark.parametrize(
    "name", ["", "nope", "a/b/c", "./x", "~/nothing-here", "x.json", "a b/c", "a\0b", "x" * 5000]
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UnknownModelError):
        find(name)


def test_a_directory_named_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="is a directory, not a regular file"):
        find(str(tmp_path))


def test_the_page_of_provenance_is_written_from_what_the_planner_reads() -> None:
    """`PYTHONPATH=tests/support python -m provenance_page` writes it anew."""
    assert provenance_page.PAGE.read_text() == provenance_page.page()


def test_exactly_the_bundled_configs_have_a_provenance() -> None:
    stated = json.loads(PROVENANCE.read_bytes())["configs"]
    assert sorted(stated) == sorted(f"{name.replace('/', '--')}.json" for name in bundled_names())


def test_every_bundled_config_names_its_revision() -> None:
    for name in bundled_names():
        revision = find(name).revision
        assert revision is not None, name
        assert "@" in revision or revision.startswith("HF page "), (name, revision)
    assert find("DeepSeek-V2-Lite").revision == "inference-sim/inference-sim@f90a1e3a6787"
    assert find("Ling-1T").revision == "Ascend/msmodeling@84fec853d670"


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one repository, one gated and one broken one."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        answers = {
            "/some/model/resolve/main/config.json": (200, V3.encode()),
            "/some/gated/resolve/main/config.json": (401, b""),
            "/some/broken/resolve/main/config.json": (200, b"<html>"),
            "/some/busy/resolve/main/config.json": (503, b""),
        }
        status, body = answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.seen = []
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        yield Hub
        server.shutdown()
        thread.join()


def test_the_hub_is_asked_last_and_with_the_token(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert read_model("some/model").num_layers == 61
    assert hub.seen == [("/some/model/resolve/main/config.json", "Bearer secret")]
    find("deepseek-ai/DeepSeek-V3")
    assert len(hub.seen) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/gated", "set HF_TOKEN"),
        ("some/other", "check the name"),
        ("some/busy", "status 503"),
    ],
)
def test_what_the_hub_refuses(hub: type[Hub], name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        find(name)


def test_what_is_no_config(hub: type[Hub]) -> None:
    with pytest.raises(ModelError, match="is not valid JSON"):
        find("some/broken")
