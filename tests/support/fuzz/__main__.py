"""Fuzz one target with atheris: python -m fuzz TARGET [SECONDS] (see `make fuzz`).

Coverage-guided: starts from the bundled configs and a small checkpoint's header, mutates bytes,
and keeps what reaches new code. Any exception but the named errors stops it with the input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vllm_layershard", "layershard_cli"]):
    from fuzz.targets import TARGETS
    from vllm_layershard.models.sources import source

from checkpoints import deepseek, header_of, small_config

FINDINGS = Path(".cache/fuzz")
"""Where an input that was found is kept."""


def seeds(target: str) -> list[bytes]:
    """Inputs that are fine."""
    if target == "config":
        bundled = [json.loads(path.read_bytes()) for path in source._BUNDLED.glob("*.json")]
        smaller = [{**values, "num_hidden_layers": 4} for values in bundled]
        return [json.dumps(values).encode() for values in (*smaller, small_config())]
    if target in ("file", "header", "directory"):
        raw, data_bytes = header_of(dict(list(deepseek(small_config()).items())[:4]))
        tiny, tiny_bytes = header_of({"a.weight": ("BF16", [2, 3]), "b": ("F32", [])})
        pairs = ((raw, min(data_bytes, 1 << 12)), (tiny, tiny_bytes))
        if target == "header":
            return [length.to_bytes(2, "little") + text for text, length in pairs]
        return [len(text).to_bytes(8, "little") + text + b"\0" * length for text, length in pairs]
    if target == "weight_map":
        return [b'{"metadata": {"total_size": 3}, "weight_map": {"a": "b.safetensors"}}']
    if target == "description":
        return [b'{"version": "1.0", "a.0.b.weight": "W8A8", "c.experts.1.d.weight": "FLOAT"}']
    return [b'{"layer_sharding": {"layers": ["o_proj"], "prefetch_step": 1}}']


def main() -> None:
    target, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds(target)):
            (Path(corpus) / str(i)).write_bytes(seed)
        run = TARGETS[target]
        flags = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=600"]
        FINDINGS.mkdir(parents=True, exist_ok=True)
        flags.append(f"-artifact_prefix={FINDINGS}/")
        atheris.Setup([sys.argv[0], *flags, corpus], lambda data: run(data) and None)
        atheris.Fuzz()


main()
