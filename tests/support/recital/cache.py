"""Where the trained models are kept: `.cache/` of the repository, by a digest of the generator."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
CACHE = REPOSITORY / ".cache"


def model_path(shape: str = "experts") -> Path:
    """The directory of the model of this shape, a module of this package.

    It is trained and written first if it is not there (one to four minutes).

    Safe to call from several processes: one builds, the others wait.
    """
    directory = CACHE / f"recital-{shape}-{_digest()}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"recital-{shape}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            draft = Path(tempfile.mkdtemp(dir=CACHE))
            try:
                _build_elsewhere(shape, draft)
                draft.rename(directory)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return directory


def _digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _build_elsewhere(shape: str, directory: Path) -> None:
    """Train in a process of its own: nothing that the caller imported or set has a say."""
    subprocess.run(
        [sys.executable, "-m", "recital", shape, str(directory)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        check=True,
    )


def build(shape: str, directory: Path) -> None:
    """Train the model of this shape and write it, with its tokenizer, into `directory`."""
    from recital.tokens import save_tokenizer
    from recital.training import train

    module = import_module(f"recital.{shape}")
    page = save_tokenizer(directory)
    train(module.shape(), page).save_pretrained(directory, safe_serialization=True)
    config_file = directory / "config.json"
    config = json.loads(config_file.read_text()) | module.VLLM_ONLY
    config_file.write_text(json.dumps(config, indent=1) + "\n")
