"""Metrics: what vLLM itself counts in a running server."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from serving.server import Server

CACHED = ("--enable-prefix-caching", "--block-size", "32")
BLOCK_TOKENS = 32
"""A prefix is cached in whole blocks. On a CPU vLLM 0.32 has none that are smaller, without MLA."""


def cached_tokens(server: Server) -> list[int]:
    """By engine, the prompts' tokens that its prefix cache had, since the server's start."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=120) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        (hits,) = (one for one in families if one.name == "vllm:prefix_cache_hits")
    counted = {
        int(sample.labels["engine"]): int(sample.value)
        for sample in hits.samples
        if sample.name.endswith("_total")
    }
    return [counted[engine] for engine in range(server.engines)]


def repeated_tokens(server: Server, prompts: Sequence[list[int]]) -> list[int]:
    """By engine, what `ask` finds in the prefix cache of prompts that have been asked there before.

    A prompt's last token is never taken from it: its logits are asked for.
    """
    found = [0] * server.engines
    for i, prompt in enumerate(prompts):
        found[i % server.engines] += (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    return found
