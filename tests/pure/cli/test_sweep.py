"""`layershard sweep`: what the dead left in shared memory goes, what the living have stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from console import complaint, document, said
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.shared_memory import PREFIX

WRITER = """
import os, sys
from pathlib import Path
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.piece import Piece
shared_memory.DIRECTORY = Path(sys.argv[1])
for name, nbytes in zip(sys.argv[2::2], sys.argv[3::2]):
    Piece.of(name, bytes(int(nbytes)))
print("ready", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Memory of this test's own: others may run servers on this node."""
    path = Path(tempfile.mkdtemp(prefix="test-sweep-", dir=shared_memory.DIRECTORY))
    monkeypatch.setattr(shared_memory, "DIRECTORY", path)
    yield path
    shutil.rmtree(path)


def writer(directory: Path, *names_and_bytes: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), *names_and_bytes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_the_dead_left_is_removed_and_told_with_its_bytes(directory: Path) -> None:
    living = writer(directory, f"{PREFIX}a-living", "10")
    dead = writer(directory, f"{PREFIX}b-v0", "5000", f"{PREFIX}c-alive", "0")
    (directory / "of-another-program").write_bytes(b"12")
    before = f"nothing was left in {directory} by your servers that have ended\n"
    assert said("sweep") == before
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert said("sweep") == (
        f"{PREFIX}b-v0: 5,000 bytes\n{PREFIX}c-alive: 0 bytes\n"
        f"removed 2 files from {directory}: 5,000 bytes\n"
    )
    assert sorted(os.listdir(directory)) == [f"{PREFIX}a-living", "of-another-program"]
    nothing = {"directory": str(directory), "removed": [], "removed_bytes": 0}
    assert document("sweep") == {"schema_version": 1, **nothing}
    living.communicate("x")


def test_json_has_all_and_a_name_that_would_act_on_a_terminal_is_escaped(directory: Path) -> None:
    (directory / f"{PREFIX}a").write_bytes(b"123")
    assert document("sweep") == {
        "schema_version": 1,
        "directory": str(directory),
        "removed": [{"name": f"{PREFIX}a", "bytes": 3}],
        "removed_bytes": 3,
    }
    (directory / f"{PREFIX}\x1b]0;x\a").write_bytes(b"1")
    assert said("sweep") == (
        f"{PREFIX}\\x1b]0;x\\x07: 1 bytes\nremoved 1 file from {directory}: 1 bytes\n"
    )


def test_a_directory_that_cannot_be_listed_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "DIRECTORY", Path("/dev/null"))
    code, message = complaint("sweep")
    assert code == 2
    assert message.startswith("layershard: /dev/null: what dead processes have left there cannot")


def test_it_imports_neither_torch_nor_vllm() -> None:
    script = (
        "import sys\nsys.argv = ['layershard', 'sweep']\nfrom layershard_cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'vllm_layershard.runtime.shared_memory' in sys.modules\n"
        "print(sorted({'torch', 'vllm', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr
