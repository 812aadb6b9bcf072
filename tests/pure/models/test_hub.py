"""The Hub, as a real server on this machine: parts of files, redirects, and servers that lie."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import deepseek, small_config, write
from hub_server import COMMIT, HANG_S, LISTS, NAME, Handler, serving
from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models import find, model_of
from vllm_layershard.models.checkpoint import from_hub as hub_checkpoint
from vllm_layershard.models.checkpoint.from_hub import fetch_checkpoint
from vllm_layershard.models.checkpoint.stored import evidence_for
from vllm_layershard.models.sources import http_get
from vllm_layershard.models.sources.beside import BY_HAND, DESCRIPTION, HF_QUANT
from vllm_layershard.models.sources.hub import fetch


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
    asked: dict[str, list[str | None]] = {}
    for path, span, _ in parts:
        asked.setdefault(path, []).append(span)
    for path, (first, rest) in asked.items():  # the files come side by side
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
    assert asked == ["config.json", HF_QUANT, DESCRIPTION, COMMIT]
    assert served.seen[3][0] == LISTS[1]
    assert all(COMMIT in path for path, _, _ in served.seen[1:])
    stated = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    contents = {"producer": {"name": "modelopt"}, "quantization": stated}
    (served.root / HF_QUANT).write_text(json.dumps(contents))
    served.seen.clear()
    assert model_of(find(NAME)).quantization == "modelopt_fp8"
    assert len(served.seen) == 2


@pytest.mark.parametrize(
    "file",
    [
        *("Qwen3-Q4_K_M.gguf", "model-fp8-00001-of-00002.safetensors", "model-int4.safetensors"),
        *("gptq_config.json", "recipe_w4a16.yaml", *BY_HAND, "openvino_model.bin"),
        *("onnx/model_q4.onnx", "Q4_K_M/part.gguf", "training recipe.yaml", "量化_quant.json"),
        *("recipe#1.yaml", "recipe?x.yaml", "recipe%20.yaml"),
    ],
)
def test_a_file_of_any_name_is_found_on_the_hub_as_in_a_directory(
    file: str, served: type[Handler]
) -> None:
    for path in served.root.glob("*.safetensors*"):
        path.unlink()
    (served.root / file).parent.mkdir(exist_ok=True)
    (served.root / file).write_text("GPTQModifier: {scheme: W4A16}")
    said = []
    for name in (NAME, str(served.root)):
        with pytest.raises(ModelError, match="quantization_config: is missing, and") as error:
            model_of(find(name))
        assert file in str(error.value)
        said.append(str(error.value).rpartition(file)[2].removeprefix(" (Hub)"))
    assert said[0] == said[1]


def test_an_endpoint_that_lists_no_files_proves_nothing(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.LISTS", [])
    with pytest.raises(UnknownModelError, match="does not list the repository's files, so nothing"):
        model_of(find(NAME))


def test_a_list_that_is_empty_proves_nothing(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(NAME)
    monkeypatch.setattr(served, "root", served.root / "empty")
    (served.root).mkdir()
    with pytest.raises(ModelError, match="siblings: is missing or empty"):
        model_of(found)


def test_a_listed_name_that_no_text_has_is_asked_for(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["config.json", "recipe\ud800.yaml", "model.safetensors"]
    monkeypatch.setattr("vllm_layershard.models.sources.hub.list_files", lambda *_: names)
    assert model_of(find(NAME)).quantization == "none"
    assert served.seen[-1][0].endswith("/recipe%ED%A0%80.yaml")


@pytest.mark.timeout(30)
def test_a_listing_of_any_names_is_judged_in_bounded_time(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ["recipe" * 100_000 + ".toml", *(f"recipe{i}.yaml" for i in range(2000))]
    monkeypatch.setattr("vllm_layershard.models.sources.hub.list_files", lambda *_: long)
    with pytest.raises(ModelError, match="one of 2000 recipes"):
        model_of(find(NAME))
    assert len(served.seen) == 3


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
    assert sorted(map(repr, other.seen)) == sorted(
        repr((path, span, None)) for path, span, _ in served.seen
    )


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
        ("speaks no HTTP", r"cannot be reached \(what it answers, or a proxy for it, is no HTTP"),
        ("hangs up at once", r"cannot be reached \(it closed the connection"),
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


def with_shards(served: type[Handler], shards: int) -> None:
    for path in served.root.glob("model*"):
        path.unlink()
    write(served.root, deepseek(small_config()), shards=shards)


def test_eight_files_are_asked_for_at_a_time_and_no_more(served: type[Handler]) -> None:
    """Each request waits until seven others do: with fewer at a time none would be answered."""
    together, lock = threading.Barrier(8), threading.Lock()
    running: list[int] = [0, 0]

    class Waits(served):  # type: ignore[misc, valid-type]
        def do_GET(self) -> None:
            if not self.path.endswith(".safetensors"):
                super().do_GET()
                return
            with lock:
                running[0] += 1
                running[1] = max(running)
            together.wait(HANG_S)
            with lock:
                running[0] -= 1
            super().do_GET()

    with_shards(served, 16)
    for address in serving(Waits):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", address)
            checkpoint, commit = fetch_checkpoint(NAME, "main", quiet)
    assert (len(checkpoint.files), commit) == (16, COMMIT)
    assert running[1] == 8


@pytest.mark.parametrize("hanging", ["model.safetensors.index.json", "model-00003-of-00009"])
def test_there_is_one_deadline_for_all_files(
    served: type[Handler], monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    class Hangs(served):  # type: ignore[misc, valid-type]
        def do_GET(self) -> None:
            if hanging in self.path:
                self.released.wait(HANG_S)
            super().do_GET()

    with_shards(served, 9)
    # Long enough for two quick answers on the slowest machine: what is tested is that it ends.
    monkeypatch.setattr(hub_checkpoint, "SECONDS", 3.0)
    for address in serving(Hangs):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ModelError) as error:
            fetch_checkpoint(NAME, "main", quiet)
        assert not served.released.is_set()
        served.released.set()
    sent = "0 of so many" if "index" in hanging else "2 of 9"
    assert str(error.value) == (
        f"{NAME}: the Hub sent {sent} headers within 3 seconds; plan without --exact"
    )


def test_the_first_broken_file_ends_it_at_once(served: type[Handler]) -> None:
    """The others that were asked for are not waited for."""

    class Hangs(served):  # type: ignore[misc, valid-type]
        def do_GET(self) -> None:
            if "model-0000" in self.path and "model-00001" not in self.path:
                self.released.wait(HANG_S)
            super().do_GET()

    with_shards(served, 9)
    (served.root / "model-00001-of-00009.safetensors").write_bytes(b"\xff" * 100)
    for address in serving(Hangs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", address)
            with pytest.raises(ModelError, match=r"model-00001-of-00009.*plan without --exact"):
                fetch_checkpoint(NAME, "main", quiet)
        assert not served.released.is_set()
        served.released.set()
