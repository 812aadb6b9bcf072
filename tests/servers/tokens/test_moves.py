"""Servers whose forwards move weights or tokens: they say what the unsharded server says.

A decode of these servers has at most eight tokens on a rank, and no prefill has fewer than ten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import probe
from serving.adapter import adapter_for
from serving.answers import Answer, ask, check_to_rounding, compare
from serving.layout import TWO_RANKS, Layout
from serving.reports import check_moved
from serving.server import Server
from serving.streams import cut_off
from serving.weights import first_layers

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

MOVES = pytest.mark.matrix(part="moves")
WAYS = pytest.mark.matrix(part="ways")

LAYERS = ["o_proj", "q_b_proj", "shared_experts.down_proj", "gate_up_proj"]
BETWEEN = 9
"""Tokens of a rank: more than of any decode, fewer than of any prefill."""


def asking(directory: Path, move: str, **options: Any) -> dict[str, Any]:
    start = {"move_weights_from": BETWEEN} if move == "auto" else {}
    return {
        "layers": LAYERS,
        "move": move,
        "report_dir": str(directory / "reports"),
        "verify": True,
        **start,
        **options,
    }


def poison(server: Server) -> None:
    poisoned = server.post("/collective_rpc", {"method": "poison_slots"})
    assert poisoned["results"] == [str(len(LAYERS) + 1)]  # two kinds of gate_up_proj


def serving(model: Path, directory: Path, sharding: dict[str, Any], **options: Any) -> Server:
    """A server with everything poisoned that may be: see `poison`."""
    arguments = (*options.pop("arguments", ()), *probe.ARGUMENTS)
    return Server(
        model,
        directory / "log",
        sharding=sharding,
        arguments=arguments,
        environment=probe.ENVIRONMENT,
        **options,
    )


def check_all(server: Server, prompts: Any, plain: list[Answer], reference: Any) -> list[Answer]:
    """Uneven loads, requests that are given up, and an idle rank: every answer is right."""
    answers = ask(server, prompts)
    assert [answer.token_ids for answer in answers] == reference
    check_to_rounding(answers, plain)
    assert cut_off(server, prompts[:4]) == 4
    alone = ask(server, prompts[:4], rank=server.engines - 1)
    assert [answer.token_ids for answer in alone] == reference[:4]
    return answers


def test_prefills_move_weights_and_decodes_tokens(
    model, prompts, plain_eager, rebatched, reference, tmp_path
):
    """No further from the unsharded server than twice what other batches of its own are."""
    with serving(model, tmp_path, asking(tmp_path, "auto")) as server:
        poison(server)
        answers = check_all(server, prompts, plain_eager, reference)
        check_moved(tmp_path / "reports", TWO_RANKS, {"weights", "activations"})
    moved, batched = compare(answers, plain_eager), compare(rebatched, plain_eager)
    print(f"auto against plain: {moved}; in other batches: {batched}")
    assert moved.largest_logprob_gap <= 2 * batched.largest_logprob_gap
    assert moved.largest_rival_gap <= 2 * batched.largest_rival_gap


@MOVES
@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_where_tokens_always_move_no_slot_is_ever_written(
    model, prompts, plain_eager, reference, tmp_path, placement
):
    asked = asking(tmp_path, "activations", placement=placement)
    with serving(model, tmp_path, asked) as server:
        poison(server)
        check_all(server, prompts, plain_eager, reference)
        check_moved(tmp_path / "reports", TWO_RANKS, {"activations"})
        names = server.post("/collective_rpc", {"method": "are_poisoned"})["results"]
        assert len(names) == 1
        assert all(name in str(names) for name in ("o_proj", "q_b_proj", "gate_up_proj"))


TP2 = Layout(tp=2)
WHOLE = ["fused_qkv_a_proj"]
"""Whole on every tensor-parallel rank, which has the same tokens as the others."""


@MOVES
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (TWO_RANKS, {"transport": "pull", "keep_first": True}),
        (TP2, {"layers": WHOLE}),
        (Layout(dp=2, tp=2), {"layers": [*LAYERS, *WHOLE]}),
        (Layout(dp=4), {}),
        (TWO_RANKS, {"placement": "striped", "keep_first": True}),
        (TP2, {"layers": WHOLE, "placement": "striped"}),
        (Layout(dp=4), {"placement": "striped"}),
    ],
    ids=["pulls", "tp2", "dp2 tp2", "dp4", "stripes", "tp2 stripes", "dp4 stripes"],
)
def test_in_every_mode_and_layout(
    model, prompts, plain_eager, reference, tmp_path, layout, options
):
    plain = plain_eager
    if layout.tp > 1:  # it sums in another order, sharded or not
        with Server(model, tmp_path / "plain", layout=layout) as server:
            plain = ask(server, prompts)
    asked = asking(tmp_path, "auto", **options)
    with Server(model, tmp_path / "log", layout=layout, sharding=asked) as server:
        check_all(server, prompts, plain, reference)
        check_moved(tmp_path / "reports", layout, {"weights", "activations"})


ATTENTION = ["o_proj", "q_b_proj"]
"""In each of two stages there are several of them, but one layer of shared experts in the first."""


@WAYS
@pytest.mark.parametrize(
    ("layout", "layers", "moved"),
    [
        (TWO_RANKS, LAYERS, "round_robin"),
        (Layout(dp=2, pp=2), ATTENTION, "round_robin"),
        (TWO_RANKS, LAYERS, "striped"),
    ],
    ids=["dp2", "dp2 pp2", "stripes"],
)
def test_compiled_they_say_what_the_control_says(
    model, prompts, reference, tmp_path, layout, layers, moved
):
    """The control runs the same ops, and moves neither weights nor tokens."""
    answers = {}
    for placement in ("replicated", moved):
        asked = asking(tmp_path / placement, "auto", placement=placement, layers=layers)
        with Server(
            model, tmp_path / f"{placement}.log", layout=layout, eager=False, sharding=asked
        ) as server:
            answers[placement] = ask(server, prompts)
            if placement == moved:
                assert cut_off(server, prompts[:4]) == 4
                alone = ask(server, prompts[:4], rank=server.engines - 1)
                assert [answer.token_ids for answer in alone] == reference[:4]
                check_moved(tmp_path / placement / "reports", layout, {"weights", "activations"})
    assert [answer.token_ids for answer in answers[moved]] == reference
    check_to_rounding(answers[moved], answers["replicated"])


@MOVES
def test_an_adapter_computes_beside_a_linear_that_its_owner_computes(model, prompts, tmp_path):
    """On dense layers: with LoRA, vLLM 0.32 runs routed experts by Triton kernels only."""
    dense = first_layers(model, tmp_path / "dense", 4)
    adapter = adapter_for(dense, tmp_path / "adapter")
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"adapter={adapter}")
    answers = {}
    for case, asked in (("plain", None), ("moved", asking(tmp_path, "auto", layers=WHOLE))):
        with Server(
            dense, tmp_path / case, layout=TP2, sharding=asked, arguments=arguments
        ) as server:
            answers[case] = ask(server, prompts), ask(server, prompts, model="adapter")
            if asked is not None:
                check_moved(tmp_path / "reports", TP2, {"weights", "activations"})
    for moved, plain in zip(answers["moved"], answers["plain"], strict=True):
        check_to_rounding(moved, plain)
