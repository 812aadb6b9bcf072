"""Every file that the planner reads or writes, as everything that a file name may stand for.

Each ends at once in one message, or in a plan where the file is one among several sources. Nothing
here is slow where it works; a limit ends what hangs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from checkpoints import deepseek, small_config, write
from console import Ended, layershard
from vllm_layershard import bounded_file
from vllm_layershard.models.checkpoint.weight_map import INDEX, SINGLE
from vllm_layershard.models.sources.beside import BY_HAND, DESCRIPTION, HF_QUANT

pytestmark = pytest.mark.timeout(60)  # only a hang takes so long

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOBODY = 65534
SHARD = "model-00001-of-00002.safetensors"
PLAN = ["plan", "--pcp", "2", "--layers", "o_proj"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory, in a place that everybody may enter."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(small_config()))
    return tmp_path


def local(place: Path) -> list[str]:
    return [*PLAN, "--model", str(place / "model")]


def in_shards(place: Path) -> list[str]:
    write(place / "model", deepseek(small_config()), shards=2)
    return local(place)


def in_one_file(place: Path) -> list[str]:
    write(place / "model", deepseek(small_config()))
    return local(place)


def in_the_cache(place: Path) -> list[str]:
    repository = place / "cache" / "models--some--model"
    (repository / "snapshots").mkdir(parents=True)
    (place / "model").rename(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return [*PLAN, "--model", "some/model"]


def described(place: Path) -> list[str]:
    kinds = dict.fromkeys(deepseek(small_config()), "FLOAT")
    (place / "model" / DESCRIPTION).write_text(json.dumps(kinds))
    return local(place)


def quantised_beside(place: Path) -> list[str]:
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (place / "model" / HF_QUANT).write_text(json.dumps(stated))
    return local(place)


def on_a_device(place: Path) -> list[str]:
    (place / "device.json").write_text('{"base": "H200"}')
    return [*PLAN, "--model", "DeepSeek-V3", "--hardware", str(place / "device.json")]


def shown(place: Path) -> list[str]:
    (place / "device.json").write_text('{"base": "H200"}')
    return ["hardware", str(place / "device.json")]


def checked(place: Path) -> list[str]:
    (place / "additional.json").write_text('["o_proj"]')
    return ["check", f"@{place / 'additional.json'}", "--model", "DeepSeek-V3", "--dp", "8"]


CACHED = "cache/models--some--model"
FILES: dict[str, tuple[Callable[[Path], list[str]], str, int]] = {
    "config.json": (local, "model/config.json", 3),
    "an index": (in_shards, f"model/{INDEX}", 3),
    "a shard": (in_shards, f"model/{SHARD}", 3),
    "a single file": (in_one_file, f"model/{SINGLE}", 3),
    "a description": (described, f"model/{DESCRIPTION}", 3),
    "a quantisation beside": (quantised_beside, f"model/{HF_QUANT}", 3),
    "a config in the cache": (in_the_cache, f"{CACHED}/snapshots/{COMMIT}/config.json", 3),
    "a revision in the cache": (in_the_cache, f"{CACHED}/refs/main", 3),
    "a profile": (on_a_device, "device.json", 3),
    "a profile that is shown": (shown, "device.json", 3),
    "an additional config": (checked, "additional.json", 2),
}
"""What arguments read the file, where it lies, and the exit code if it cannot be read."""


@contextmanager
def replaced(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    path.unlink()
    made = make(path)
    yield
    if isinstance(made, socket.socket):
        made.close()


def listening(path: Path) -> socket.socket:
    here = socket.socket(socket.AF_UNIX)
    former = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 108 characters
    here.bind(path.name)
    os.chdir(former)
    return here


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """No permission; for root, by being nobody meanwhile."""
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        for folder in path.parents:
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """It grows beyond every limit just after it was looked at."""
    look = os.fstat

    def then_it_grows(descriptor: int) -> os.stat_result:
        status = look(descriptor)
        if os.path.samestat(status, path.stat()):
            os.truncate(path, status.st_size + (1 << 30))
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded_file.os, "fstat", then_it_grows)
        yield


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (lambda path: replaced(path, os.mkfifo), "is a pipe"),
    "a socket": (lambda path: replaced(path, listening), "is a socket, not a regular file"),
    "a device that never ends": (
        lambda path: replaced(path, lambda path: path.symlink_to("/dev/zero")),
        "is a device, not a regular file",
    ),
    "a terminal": (
        lambda path: replaced(path, lambda path: path.symlink_to("/dev/ptmx")),
        "is a device, not a regular file",
    ),
    "a directory": (lambda path: replaced(path, Path.mkdir), "is a directory, not a regular file"),
    "a link to itself": (
        lambda path: replaced(path, lambda path: path.symlink_to(path.name)),
        "Too many levels of symbolic links",
    ),
    "no permission": (forbidden, "Permission denied"),
    "grows": (growing, "is larger than|changed while it was read"),
}


def ended_well(ended: Ended) -> bool:
    assert "Traceback" not in ended.stderr
    return ended.code == 0


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("file", FILES)
def test_each_ends_in_one_message(
    file: str, odd: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_file, "PIPE_SECONDS", 0.05)
    arguments, name, code = FILES[file]
    words = arguments(place)
    assert ended_well(layershard(*words)), "the file itself is good"
    make, message = ODD[odd]
    with ExitStack() as stack:
        stack.enter_context(make(place / name))  # type: ignore[arg-type]
        ended = layershard(*words)
    assert ended.code == code, ended
    assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)
    assert ended.stderr.startswith("layershard: ")
    if not file.endswith("in the cache"):  # without one the Hub would be asked, which is forbidden
        assert any(part in ended.stderr for part in message.split("|")), ended.stderr


@pytest.mark.parametrize("file", BY_HAND)
@pytest.mark.parametrize("odd", ["a pipe", "a socket", "a directory", "a link to itself"])
def test_what_older_tools_leave_beside_a_config(file: str, odd: str, place: Path) -> None:
    words, path = local(place), place / "model" / file
    assert ended_well(layershard(*words)), "there need be none"
    path.touch()
    make, message = ODD[odd]
    with ExitStack() as stack:
        stack.enter_context(make(path))  # type: ignore[arg-type]
        ended = layershard(*words)
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (3, "", 1)
    assert message in ended.stderr


@pytest.mark.parametrize("file", ["a profile", "a profile that is shown", "an additional config"])
def test_what_the_user_names_may_be_a_pipe_that_ends(file: str, place: Path) -> None:
    """As a shell's `<(command)` is."""
    arguments, name, _ = FILES[file]
    words = arguments(place)
    wanted = layershard(*words)
    reader, writer = os.pipe()
    os.write(writer, (place / name).read_bytes())
    os.close(writer)
    ended = layershard(*(w.replace(str(place / name), f"/dev/fd/{reader}") for w in words))
    os.close(reader)
    assert (ended.code, wanted.code) == (0, 0)
    (place / name).unlink()
    os.mkfifo(place / name)
    writing = threading.Thread(
        target=lambda: (place / name).write_text(
            '["o_proj"]' if "check" in words else '{"base": "H200"}'
        )
    )
    writing.start()
    assert layershard(*words).code == 0
    writing.join()


def test_a_pipe_whose_writer_never_ends_is_given_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_file, "PIPE_SECONDS", 0.05)
    reader, writer = os.pipe()
    os.write(writer, b"{")
    ended = layershard("hardware", f"/dev/fd/{reader}")
    os.close(reader)
    os.close(writer)
    assert ended.code == 3
    assert "is a pipe whose writer did not end within 0.05 seconds" in ended.stderr


def test_a_pipe_that_gives_more_than_is_read_is_refused(place: Path) -> None:
    pipe = place / "pipe.json"
    os.mkfifo(pipe)

    def pour() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            while True:
                stream.write(b" " * (1 << 16))

    pouring = threading.Thread(target=pour)
    pouring.start()
    ended = layershard("hardware", str(pipe))
    pouring.join()
    assert (ended.code, "is larger than 1,048,576 bytes" in ended.stderr) == (3, True)


UNWRITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (lambda path: replaced(path, os.mkfifo), "is a pipe that nobody reads"),
    "a socket": (lambda path: replaced(path, listening), "or a socket"),
    "a full device": (
        lambda path: replaced(path, lambda path: path.symlink_to("/dev/full")),
        "No space left on device",
    ),
    "a directory": (lambda path: replaced(path, Path.mkdir), "Is a directory"),
    "a link to itself": (ODD["a link to itself"][0], "Too many levels of symbolic links"),
    "no permission": (forbidden, "Permission denied"),
}


@pytest.mark.parametrize(
    ("flag", "odd"),
    [
        (flag, odd)
        for flag in ("--html", "--trace", "calibrate")
        for odd in UNWRITABLE
        if (flag, odd) != ("calibrate", "a full device")  # nothing is written there at first
    ],
)
def test_what_cannot_be_written_is_one_message(flag: str, odd: str, place: Path) -> None:
    target = place / "target"
    target.write_text("")
    words = (
        ["calibrate", "--output", str(target)]
        if flag == "calibrate"
        else [*PLAN, "--model", "DeepSeek-V3", flag, str(target)]
    )
    layershard("hardware")  # what is imported as nobody must have been found before
    make, message = UNWRITABLE[odd]
    with ExitStack() as stack:
        stack.enter_context(make(target))  # type: ignore[arg-type]
        ended = layershard(*words)
    assert (ended.code, ended.stdout) == (3 if flag == "calibrate" else 2, "")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_pipe_that_is_not_read_on_is_given_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_file, "PIPE_SECONDS", 0.05)
    reader, writer = os.pipe()
    ended = layershard(*PLAN, "--model", "DeepSeek-V3", "--trace", f"/dev/fd/{writer}")
    os.close(reader)
    os.close(writer)
    assert ended.code == 2
    assert "did not take what is written within 0.05 seconds" in ended.stderr


def test_a_page_goes_into_a_pipe_that_is_read(place: Path) -> None:
    pipe = place / "pipe.html"
    os.mkfifo(pipe)
    found: list[str] = []
    reading = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reading.start()
    written = layershard(*PLAN, "--model", "DeepSeek-V3", "--html", str(place / "page.html"))
    descriptor = os.open(pipe, os.O_WRONLY)  # waits until it is read
    ended = layershard(*PLAN, "--model", "DeepSeek-V3", "--html", str(pipe))
    os.close(descriptor)
    reading.join()
    assert (written.code, ended.code) == (0, 0)
    assert found == [(place / "page.html").read_text()]


def test_a_pipe_is_not_touched(place: Path) -> None:
    """Who waits for a reader of it goes on waiting."""
    config = place / "model" / "config.json"
    text = config.read_text()
    config.unlink()
    os.mkfifo(config)
    writing = threading.Thread(target=lambda: config.write_text(text))
    writing.start()
    assert layershard(*local(place)).code == 3
    assert config.read_text() == text
    writing.join()
    shutil.rmtree(place / "model")
