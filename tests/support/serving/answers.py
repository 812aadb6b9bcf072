"""Answers: greedy token ids with their logprobs, from a server or from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

from openai import OpenAI

from serving.server import Server

MAX_TOKENS = 24
CONCURRENCY = 8

ROUNDING = 0.05
"""How far a compiled server may be from the plain one; docs/adr/0005-to-rounding.md."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said after a prompt: token ids, text, each token's logprob, and its rivals'."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    rivals: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sets of answers compared.

    `identical_logprobs`: every logprob, of what was said and of its two nearest rivals, is equal to
    the bit. The gaps are the largest over answers that say the same: of the logprobs of what was
    said, of the logprobs of the rivals that both name, and of these rivals' probabilities.
    """

    same_tokens: int
    of: int
    identical_logprobs: bool
    largest_logprob_gap: float
    largest_rival_gap: float
    largest_rival_probability_gap: float


def ask(
    server: Server,
    prompts: Sequence[list[int]],
    *,
    rank: int | None = None,
    model: str = "model",
) -> list[Answer]:
    """Ask `model` (or an adapter of it) with the OpenAI client, eight prompts at a time.

    Prompt i goes to `rank`, or to i % engines.
    """
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):

        def one(i: int) -> Answer:
            to = i % server.engines if rank is None else rank
            completion = client.completions.create(
                model=model,
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
        logprobs=tuple(choice.logprobs.token_logprobs),
        rivals=tuple(tuple(sorted(top.items())) for top in choice.logprobs.top_logprobs),
    )


def compare(one: Sequence[Answer], other: Sequence[Answer]) -> Difference:
    """Compare answers to the same prompts, in the same order."""
    said, rivals, probabilities = [0.0], [0.0], [0.0]
    for a, b in zip(one, other, strict=True):
        if a.token_ids == b.token_ids:
            said += [abs(p - q) for p, q in zip(a.logprobs, b.logprobs, strict=True)]
            for mine, yours in zip(a.rivals, b.rivals, strict=True):
                theirs = dict(yours)
                both = [(p, theirs[token]) for token, p in mine if token in theirs]
                rivals += [abs(p - q) for p, q in both]
                probabilities += [abs(exp(p) - exp(q)) for p, q in both]
    return Difference(
        same_tokens=sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True)),
        of=len(one),
        identical_logprobs=all(
            (a.logprobs, a.rivals) == (b.logprobs, b.rivals)
            for a, b in zip(one, other, strict=True)
        ),
        largest_logprob_gap=max(said),
        largest_rival_gap=max(rivals),
        largest_rival_probability_gap=max(probabilities),
    )


def check_identical(one: Sequence[Answer], other: Sequence[Answer]) -> None:
    """The same tokens, and every logprob equal to the bit."""
    difference = compare(one, other)
    assert difference.same_tokens == difference.of > 0
    assert difference.identical_logprobs


def check_to_rounding(compiled: Sequence[Answer], plain: Sequence[Answer]) -> None:
    """The same tokens, and what was said and its rivals as probable as in the plain server."""
    difference = compare(compiled, plain)
    assert difference.same_tokens == difference.of > 0
    assert difference.largest_logprob_gap <= ROUNDING
    assert difference.largest_rival_probability_gap <= ROUNDING
    print(f"compiled, sharded against plain: {difference}")


def transformers_says(model: Path, prompts: Sequence[list[int]]) -> list[tuple[int, ...]]:
    """Hugging Face transformers' greedy token ids, one prompt at a time, in the saved dtype.

    In one thread: its products are small, and a second thread makes them take several times as
    long.
    """
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    said = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    torch.set_num_threads(threads)
    return said
