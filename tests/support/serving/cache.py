"""The planner's bytes of the KV cache, beside the line that vLLM logs when it starts."""

from __future__ import annotations

import re
from pathlib import Path

from serving.layout import Layout
from serving.server import ENVIRONMENT
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

CACHE_BYTES = int(ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"]) << 30
BLOCK_TOKENS = 128
"""vLLM rounds down to whole blocks, of 16 to 128 tokens."""

LINE = re.compile(r"CPU KV cache size: ([\d,]+) tokens")


def check_cache(log: str, model: Path, layout: Layout) -> None:
    """All of the cache's bytes hold as many tokens as every engine says in its log."""
    found = read_model(str(model))
    deployment = Deployment(ParallelLayout(tp=layout.tp, dp=layout.dp))
    per_token = found.kv_bytes_per_token("auto", range(found.num_layers), deployment)
    lines = LINE.findall(log)
    assert len(lines) == layout.dp
    (logged,) = {int(tokens.replace(",", "")) for tokens in lines}
    assert 0 <= CACHE_BYTES / per_token - logged < BLOCK_TOKENS
