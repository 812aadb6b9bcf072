"""Servers whose forwards move weights or tokens, with chunked prefill and a prefix cache.

A chunk's rest, and what a cached prefix leaves of a prompt, may be as few tokens as a decode has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import probe
from serving.answers import Answer, ask, check_to_rounding, transformers_says
from serving.layout import TWO_RANKS
from serving.metrics import CACHED, cached_tokens, repeated_tokens
from serving.reports import check_moved
from serving.server import Server
from serving.streams import cut_off

pytestmark = [
    pytest.mark.serve,
    pytest.mark.timeout(900),
    pytest.mark.matrix(part="ways"),
]

LAYERS = ["o_proj", "qkv_proj", "gate_up_proj"]
BETWEEN = 9
"""Tokens of a rank: more than of any decode."""
LONG, CHUNK = 71, 32
"""A prompt of so many tokens comes in two whole chunks and seven tokens."""
CHUNKED = ("--enable-chunked-prefill", "--max-num-batched-tokens", str(CHUNK))


def serving(
    model: Path, directory: Path, sharding: dict[str, Any] | None, *, eager: bool = True
) -> Server:
    return Server(
        model,
        directory / "log",
        eager=eager,
        sharding=sharding,
        arguments=(*CHUNKED, *CACHED, *probe.ARGUMENTS),
        environment=probe.ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def reference(grouped, prompts) -> list[tuple[int, ...]]:
    """What transformers says."""
    return transformers_says(grouped, prompts)


@pytest.fixture(scope="module")
def plain(grouped, prompts, reference, tmp_path_factory) -> list[Answer]:
    """The unsharded server's answers."""
    with serving(grouped, tmp_path_factory.mktemp("plain"), None) as server:
        answers = ask(server, prompts)
    assert [answer.token_ids for answer in answers] == reference
    return answers


def moved(server: Server) -> dict[str, list[int]]:
    """By series: forwards that have moved weights, and tokens; alike on all ranks of its group."""
    found: dict[str, list[int]] = server.post("/collective_rpc", {"method": "moved"})["results"][0]
    return found


def check_chunks(server: Server, prompt: list[int]) -> None:
    """One prompt alone, not cached yet: its whole chunks move weights, and its rest tokens."""
    before = moved(server)
    (answer,) = ask(server, [prompt])
    for name, (weights, tokens) in moved(server).items():
        assert weights == before[name][0] + len(prompt) // CHUNK, name
        assert tokens >= before[name][1] + len(answer.token_ids), name  # the rest's is the first


def check_again(server: Server, prompts: Any, said: list[Answer]) -> None:
    """The same prompts once more: as much of them as may be comes from the prefix cache."""
    before = cached_tokens(server)
    check_to_rounding(ask(server, prompts), said)
    counted = [now - then for now, then in zip(cached_tokens(server), before, strict=True)]
    assert counted == repeated_tokens(server, prompts)
    assert all(counted)


def asking(directory: Path, placement: str) -> dict[str, Any]:
    return {
        "layers": LAYERS,
        "move": "auto",
        "move_weights_from": BETWEEN,
        "placement": placement,
        "report_dir": str(directory / "reports"),
        "verify": True,
    }


def check_all(server: Server, prompts: Any, said: list[Answer], reports: Path) -> None:
    """Both ways count: in chunks, behind a cached prefix, after aborts, beside an idle rank."""
    check_chunks(server, next(prompt for prompt in prompts if len(prompt) == LONG))
    check_to_rounding(ask(server, prompts), said)
    check_again(server, prompts, said)
    assert cut_off(server, prompts[:4]) == 4
    check_to_rounding(ask(server, prompts[:4], rank=server.engines - 1), said[:4])
    check_moved(reports, TWO_RANKS, {"weights", "activations"})


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_in_chunks_and_behind_a_cached_prefix(grouped, prompts, plain, tmp_path, placement):
    with serving(grouped, tmp_path, asking(tmp_path, placement)) as server:
        check_all(server, prompts, plain, tmp_path / "reports")


def test_compiled_they_say_what_the_control_says(grouped, prompts, reference, tmp_path):
    """The control runs the same ops, and moves neither weights nor tokens."""
    directories = [tmp_path / "control", tmp_path / "moved"]
    for directory in directories:
        directory.mkdir()
    control, moving = directories
    with serving(grouped, control, asking(control, "replicated"), eager=False) as server:
        said = ask(server, prompts)
    assert [answer.token_ids for answer in said] == reference
    with serving(grouped, moving, asking(moving, "round_robin"), eager=False) as server:
        check_all(server, prompts, said, moving / "reports")
