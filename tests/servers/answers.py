"""Answers: greedy token ids with their logprobs, from a server or from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from servers.server import Server

MAX_TOKENS = 24
CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said after a prompt: token ids, text, and each token's logprobs by token."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sets of answers compared: how many say the same, and how far logprobs are apart."""

    same_tokens: int
    of: int
    identical_logprobs: bool
    largest_logprob_gap: float


def ask(server: Server, prompts: Sequence[list[int]], *, rank: int | None = None) -> list[Answer]:
    """Ask with the OpenAI client, eight at a time; prompt i goes to `rank`, or to i % ranks."""
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):

        def one(i: int) -> Answer:
            to = i % server.ranks if rank is None else rank
            completion = client.completions.create(
                model="model",
                prompt=prompts[i],
                max_tokens=MAX_TOKENS,
                temperature=0.0,
                logprobs=3,
                extra_headers={"X-data-parallel-rank": str(to)},
                extra_body={"return_token_ids": True},
            )
            return _answer_of(completion)

        return list(pool.map(one, range(len(prompts))))


def _answer_of(completion: Any) -> Answer:
    choice = completion.choices[0]
    return Answer(
        token_ids=tuple(choice.token_ids),
        text=choice.text,
        logprobs=tuple(tuple(sorted(top.items())) for top in choice.logprobs.top_logprobs),
    )


def compare(one: Sequence[Answer], other: Sequence[Answer]) -> Difference:
    """Compare answers to the same prompts, in the same order."""
    gaps = [0.0]
    for a, b in zip(one, other, strict=True):
        if a.token_ids == b.token_ids:
            for at, bt in zip(a.logprobs, b.logprobs, strict=True):
                theirs = dict(bt)
                gaps += [abs(value - theirs[token]) for token, value in at if token in theirs]
    return Difference(
        same_tokens=sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True)),
        of=len(one),
        identical_logprobs=[a.logprobs for a in one] == [b.logprobs for b in other],
        largest_logprob_gap=max(gaps),
    )


def transformers_says(model: Path, prompts: Sequence[list[int]]) -> list[tuple[int, ...]]:
    """Hugging Face transformers' greedy token ids, one prompt at a time, in the saved dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    said = []
    with torch.inference_mode():
        for prompt in prompts:
            asked = torch.tensor([prompt])
            tokens = reference.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                pad_token_id=1,
            )
            said.append(tuple(tokens[0, len(prompt) :].tolist()))
    return said
