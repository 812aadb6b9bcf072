"""Where the trained model is kept: `.cache/` of the repository, by a digest of the generator."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache"


def model_path() -> Path:
    """The model's directory; trained and written first if it is not there (one to two minutes).

    Safe to call from several processes: one builds, the others wait.
    """
    directory = CACHE / f"recital-{_digest()}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "recital.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            draft = Path(tempfile.mkdtemp(dir=CACHE))
            try:
                _build(draft)
                draft.rename(directory)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return directory


def _digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _build(directory: Path) -> None:
    from recital.shape import VLLM_ONLY
    from recital.tokens import save_tokenizer
    from recital.training import train

    page = save_tokenizer(directory)
    train(page).save_pretrained(directory, safe_serialization=True)
    config_file = directory / "config.json"
    config = json.loads(config_file.read_text()) | VLLM_ONLY
    config_file.write_text(json.dumps(config, indent=1) + "\n")
