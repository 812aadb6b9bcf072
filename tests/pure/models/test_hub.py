"""The Hub, as a real server on this machine: parts of files, redirects, and servers that lie."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import deepseek, small_config, write
from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models import find, model_of
from vllm_layershard.models.checkpoint import from_hub as hub_checkpoint
from vllm_layershard.models.checkpoint.from_hub import fetch_checkpoint
from vllm_layershard.models.checkpoint.stored import evidence_for
from vllm_layershard.models.sources import http_get
from vllm_layershard.models.sources.beside import BY_HAND, DESCRIPTION, HF_QUANT
from vllm_layershard.models.sources.hub import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some/model"
HANG_S = 60
"""How long a server hangs that nobody releases."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a directory as the repository some/model; `manners` says how badly."""

    root: Path
    manners: str
    elsewhere: str
    seen: list[tuple[str, str | None, str | None]]
    released: threading.Event
    """Until then it hangs, or trickles."""

    def do_GET(self) -> None:
        headers = self.headers
        self.seen.append((self.path, headers.get("Range"), headers.get("Authorization")))
        owner, name, _, revision, file = self.path.lstrip("/").split("/", 4)
        path = self.root / file
        if self.manners == "hangs up at once":
            self.close_connection = True
        elif f"{owner}/{name}" != NAME or revision not in ("main", COMMIT) or not path.is_file():
            self.answer(404, b"")
        elif self.manners == "redirects" and self.elsewhere:
            self.answer(302, b"", {"Location": f"{self.elsewhere}{self.path}"})
        elif self.manners == "circles":
            self.answer(302, b"", {"Location": self.path})
        elif self.manners == "leads to a file":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        elif self.manners == "leads to ftp":
            self.answer(302, b"", {"Location": "ftp://127.0.0.1/x"})
        elif self.manners == "hangs":
            self.released.wait(HANG_S)
        elif self.manners == "trickles":
            self.trickle()
        elif self.manners == "refuses" and file.endswith(".safetensors"):
            self.answer(403, b"")
        else:
            self.serve(path.read_bytes())

    def serve(self, contents: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None or self.manners == "ignores ranges":
            self.answer(200, contents)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end, total = int(first), int(last) + 1, len(contents)
        if self.manners == "sends another part":
            start, end = start + 1, end + 1
        body = contents[start:end]
        said = f"bytes {start}-{end - 1}/{total}"
        if self.manners == "sends less":
            body = body[:-1]
        elif self.manners == "sends more":
            body += b"more"
        elif self.manners == "states no part":
            said = "nonsense"
        elif self.manners == "states another size":
            said = f"bytes {start}-{end - 1}/{total + 1}"
        elif self.manners == "grows":
            said = f"bytes {start}-{end - 1}/{total + len(self.seen)}"
        elif self.manners == "hangs up":
            self.answer(206, body[:-1], {"Content-Range": said}, length=len(body))
            return
        self.answer(206, body, {"Content-Range": said})

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("X-Repo-Commit", COMMIT)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.released.wait(0.05):
            self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Clients hang up on it here, which is what is tested."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def serving(handler: type[Handler]) -> Iterator[str]:
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    class Here(Handler):
        root, manners, elsewhere, seen = tmp_path / "served", "", "", []
        released = threading.Event()

    Here.root.mkdir()
    (Here.root / "config.json").write_text(json.dumps(small_config()))
    write(Here.root, deepseek(small_config()), shards=3)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for address in serving(Here):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield Here
        Here.released.set()


@pytest.fixture
def other() -> Iterator[type[Handler]]:
    """Another host that a redirect may lead to."""

    class There(Handler):
        manners, elsewhere, seen = "", "", []

    for address in serving(There):
        There.address = address
        yield There


def quiet(done: int, total: int) -> None:
    pass


def test_headers_by_parts(served: type[Handler]) -> None:
    counted: list[tuple[int, int]] = []
    checkpoint, commit = fetch_checkpoint(NAME, "main", lambda *count: counted.append(count))
    assert commit == COMMIT
    assert set(checkpoint.tensors) == set(deepseek(small_config()))
    assert counted == [(0, 3), (1, 3), (2, 3), (3, 3)]
    index, *parts = served.seen
    assert index[:2] == (f"/{NAME}/resolve/main/model.safetensors.index.json", None)
    assert len(parts) == 2 * 3
    for (path, first, _), (again, rest, _) in zip(parts[::2], parts[1::2], strict=True):
        assert path == again
        assert path.startswith(f"/{NAME}/resolve/{COMMIT}/model-0000")
        contents = (served.root / path.rpartition("/")[2]).read_bytes()
        length = int.from_bytes(contents[:8], "little")
        assert (first, rest) == ("bytes=0-7", f"bytes=8-{7 + length}")
    assert {token for _, _, token in served.seen} == {"Bearer secret"}


def test_a_single_file(served: type[Handler]) -> None:
    for path in served.root.glob("model*"):
        path.unlink()
    write(served.root, deepseek(small_config()))
    checkpoint, commit = fetch_checkpoint(NAME, "main", quiet)
    assert (checkpoint.files, commit) == (("model.safetensors",), COMMIT)


def test_a_model_of_the_hub_with_its_evidence(served: type[Handler]) -> None:
    found = find(NAME)
    assert (found.source, found.revision) == (f"hub:{NAME}@{COMMIT[:12]}", COMMIT)
    evidence, notes = evidence_for(found, model_of(found), False, quiet)
    assert (evidence.comparison, notes) == (None, ())
    evidence, notes = evidence_for(found, model_of(found), True, quiet)
    assert (evidence.headers, notes) == (f"hub:{NAME}@{COMMIT[:12]}", ())
    assert evidence.comparison is not None
    assert evidence.comparison.disagreements == ()


def test_a_quantisation_beside_the_config_is_read_of_its_commit(served: type[Handler]) -> None:
    assert model_of(find(NAME)).quantization == "none"
    asked = [path.rpartition("/")[2] for path, _, _ in served.seen]
    assert asked == ["config.json", HF_QUANT, DESCRIPTION, *BY_HAND]
    assert {path.split("/")[4] for path, _, _ in served.seen[1:]} == {COMMIT}
    stated = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    contents = {"producer": {"name": "modelopt"}, "quantization": stated}
    (served.root / HF_QUANT).write_text(json.dumps(contents))
    served.seen.clear()
    assert model_of(find(NAME)).quantization == "modelopt_fp8"
    assert len(served.seen) == 2


def test_a_hub_that_fails_in_between_is_no_proof(served: type[Handler]) -> None:
    found = find(NAME)
    served.manners = "hangs up at once"
    with pytest.raises(UnknownModelError, match=f"{HF_QUANT}: the Hub at .* cannot be reached"):
        model_of(found)


@pytest.mark.parametrize("command", ["plan", "map", "check"])
def test_a_command_plans_a_model_of_the_hub_with_its_checkpoint(
    served: type[Handler], command: str
) -> None:
    words = [
        sys.executable,
        "-m",
        "layershard_cli",
        command,
        *['["o_proj"]'] * (command == "check"),
    ]
    words += ["--model", NAME, "--pcp", "2", "--exact", "--json"]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "layershard: headers read: 3 of 3 files\n" in finished.stderr
    document = json.loads(finished.stdout)
    assert document["model"]["revision"] == COMMIT
    if command == "plan":
        assert document["checkpoint"]["source"] == f"hub:{NAME}@{COMMIT[:12]}"
        assert document["checkpoint"]["disagreements"] == []


def test_a_config_in_the_cache_with_headers_from_the_hub(
    served: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT / "config.json").write_text(json.dumps(small_config()))
    found = find(NAME)
    evidence, _ = evidence_for(found, model_of(found), True, quiet)
    assert evidence.headers == f"hub:{NAME}@{COMMIT[:12]}"
    assert {path.split("/")[4] for path, _, _ in served.seen} == {COMMIT}


def test_the_token_stays_with_its_host(served: type[Handler], other: type[Handler]) -> None:
    served.manners, served.elsewhere, other.root = "redirects", other.address, served.root
    checkpoint, commit = fetch_checkpoint(NAME, "main", quiet)
    assert (len(checkpoint.files), commit) == (3, COMMIT)
    assert {token for _, _, token in served.seen} == {"Bearer secret"}
    assert {token for _, _, token in other.seen} == {None}
    assert [span for _, span, _ in other.seen] == [span for _, span, _ in served.seen]


def test_the_token_goes_along_on_the_same_host(served: type[Handler]) -> None:
    class Moved(served):  # type: ignore[misc, valid-type]
        def do_GET(self) -> None:
            if self.path.startswith("/old/"):
                self.seen.append((self.path, None, self.headers.get("Authorization")))
                self.answer(307, b"", {"Location": self.path.replace("/old/", "/some/")})
            else:
                super().do_GET()

    for address in serving(Moved):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", address)
            fetched = fetch("old/model", "main", "config.json", 1 << 20)
    assert json.loads(fetched.body) == small_config()
    assert [token for _, _, token in served.seen] == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    ("manners", "message"),
    [
        ("ignores ranges", "sends whole files where a part was asked for"),
        ("sends another part", "sent another part"),
        ("states no part", "sent another part"),
        ("sends less", "sent 7 bytes where 8 were asked for"),
        ("hangs up", "sent 7 bytes where 8 were asked for"),
        ("sends more", "sent 9 bytes where 8 were asked for"),
        ("states another size", "its tensors take"),
        ("grows", "changed while it was read"),
        ("refuses", "set HF_TOKEN"),
    ],
)
def test_servers_that_lie(served: type[Handler], manners: str, message: str) -> None:
    served.manners = manners
    with pytest.raises(ModelError, match=message):
        fetch_checkpoint(NAME, "main", quiet)


@pytest.mark.parametrize("manners", ["circles", "leads to a file", "leads to ftp"])
def test_servers_that_lead_nowhere(served: type[Handler], manners: str) -> None:
    served.manners = manners
    with pytest.raises(ModelError):
        fetch_checkpoint(NAME, "main", quiet)


@pytest.mark.parametrize("manners", ["hangs", "trickles"])
def test_a_server_that_never_ends_is_given_up(
    served: type[Handler], manners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.manners = manners
    monkeypatch.setattr(http_get, "_REQUEST_SECONDS", 0.5)
    with pytest.raises(UnknownModelError, match=r"cannot be reached \(no whole answer within"):
        fetch_checkpoint(NAME, "main", quiet)
    assert not served.released.is_set()


def test_a_slow_socket_is_given_up(served: type[Handler], monkeypatch: pytest.MonkeyPatch) -> None:
    served.manners = "hangs"
    monkeypatch.setattr(http_get, "_SOCKET_SECONDS", 0.2)
    with pytest.raises(UnknownModelError, match="timed out"):
        find(NAME)
    assert not served.released.is_set()


def test_more_files_than_are_asked_for(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_checkpoint, "MAX_SHARDS", 2)
    with pytest.raises(ModelError, match="has 3 files, --exact asks for 2"):
        fetch_checkpoint(NAME, "main", quiet)
    assert len(served.seen) == 1


def test_a_broken_header_on_the_hub(served: type[Handler]) -> None:
    (served.root / "model-00002-of-00003.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"model-00002-of-00003.*plan without --exact"):
        fetch_checkpoint(NAME, "main", quiet)


def test_a_config_that_never_ends(served: type[Handler]) -> None:
    (served.root / "config.json").write_bytes(b" " * (9 << 20))
    with pytest.raises(ModelError, match="sent more than"):
        find(NAME)


def test_offline_is_refused_politely(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnknownModelError, match="HF_HUB_OFFLINE forbids"):
        fetch_checkpoint(NAME, "main", quiet)
    assert served.seen == []


def test_an_odd_commit_is_not_believed(served: type[Handler]) -> None:
    class Odd(served):  # type: ignore[misc, valid-type]
        def send_header(self, keyword: str, value: str) -> None:
            super().send_header(keyword, "../../etc" if keyword == "X-Repo-Commit" else value)

    for address in serving(Odd):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", address)
            found = find(NAME)
            checkpoint, revision = fetch_checkpoint(NAME, "main", quiet)
    assert (found.source, found.revision) == (f"hub:{NAME}@main", None)
    assert (len(checkpoint.files), revision) == (3, "main")
