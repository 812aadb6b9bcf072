"""Streams that are begun and cut off: requests given up under load."""

from __future__ import annotations

from collections.abc import Sequence

from openai import OpenAI

from serving.server import Server

LONG_TOKENS = 128


def cut_off(server: Server, prompts: Sequence[list[int]]) -> int:
    """Begin long answers on every rank in turn and leave after the first token; how many."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for i, prompt in enumerate(prompts):
            stream = client.completions.create(
                model="model",
                prompt=prompt,
                max_tokens=LONG_TOKENS,
                stream=True,
                extra_body={"ignore_eos": True},
                extra_headers={"X-data-parallel-rank": str(i % server.engines)},
            )
            next(iter(stream))
            stream.close()
    return len(prompts)
