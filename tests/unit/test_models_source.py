"""Where a model's config.json is looked for, and in which order."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models import bundled_names, find, load_model, source

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


@pytest.mark.parametrize(
    "name", ["", "nope", "a/b/c", "./x", "~/nothing-here", "x.json", "a b/c", "a\0b", "x" * 5000]
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UnknownModelError):
        find(name)


def test_a_directory_named_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="is not a regular file"):
        find(str(tmp_path))


def test_configs_come_with_provenance() -> None:
    rows = (source._BUNDLED / "PROVENANCE.md").read_text()
    assert all(f"| {name.replace('/', '--')}.json |" in rows for name in bundled_names())


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
        thread = threading.Thread(target=server.serve_forever)
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
    assert load_model("some/model").num_layers == 61
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
