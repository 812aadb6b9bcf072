"""A decode that drafts has 1 + N tokens of each sequence, for all that counts tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest

from console import document
from vllm_layershard import Layout, plan_model
from vllm_layershard.estimate.exchange.judge import judge
from vllm_layershard.models import Batch
from vllm_layershard.models.parts.delta_net import DeltaNet
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.parts.latent import LatentAttention
from vllm_layershard.planner.results.plan_result import PlanResult

SEQUENCES = 64
ROWS = SEQUENCES * (1 + 3)


def _plan(**options: Any) -> PlanResult:
    sizes = {"layout": Layout(dp=8, ep=True), "hardware": "H200", "mtp": 3}
    return plan_model("DeepSeek-V3", ["o_proj"], **(sizes | options))


def test_what_a_decode_moves_and_multiplies_is_of_all_its_tokens() -> None:
    """o_proj's 16,384 columns and 7,168 rows, in two bytes, of seven other ranks."""
    result = _plan(move="activations")
    assert result.forecast.batches["decode"].tokens == ROWS
    assert result.move is not None
    phase = result.move.phases[1]
    assert phase.tokens == ROWS
    assert phase.activation_bytes == 7 * ROWS * 2 * (16384 + 7168)
    assert phase.product_tokens == 8 * ROWS
    assert "decode at batch 64 slows" in result.move.verdict
    said = r"decode at batch 64 slows by \d+% where activations move"
    assert re.search(said, result.prefetch.verdict)
    told = document(
        *("plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", "H200"),
        *("--mtp", "3", "--json"),
    )
    assert [times["tokens"] for times in told["prefetch"]["phases"]] == [8192, ROWS]
    assert any("64 sequences a rank after 4,096 tokens each, 1 + 3" in s for s in _said(result))


def _said(result: PlanResult) -> tuple[str, ...]:
    return result.prefetch.assumptions


@pytest.mark.parametrize(
    ("threshold", "failures"),
    [(4097, ()), (8192, ()), (8193, ("decode does not hide",))],
)
def test_a_check_compares_the_threshold_with_tokens(
    threshold: int, failures: tuple[str, ...]
) -> None:
    """4,096 sequences, 8,192 tokens: hidden where weights move, and not where activations do."""
    rule = {"move": "auto", "move_weights_from": threshold}
    result = _plan(mtp=1, batch=4096, **rule)
    assert result.failures(["decode"]) == failures


def test_a_full_decode_compares_the_threshold_with_tokens() -> None:
    sequences = _full(_plan(move="auto")).sequences
    for threshold, moved in ((1 + sequences, "weights"), (4 * sequences, "weights")):
        assert _moved(_plan(move="auto", move_weights_from=threshold)) == moved
    assert _moved(_plan(move="auto", move_weights_from=4 * sequences + 1)) == "activations"


def _full(result: PlanResult) -> Any:
    assert result.move is not None
    assert result.move.sharded_decode is not None
    return result.move.sharded_decode


def _moved(result: PlanResult) -> str:
    assert result.move is not None
    words = result.move.verdict.rpartition(" where ")[2]
    return words.partition(" ")[0]


def test_a_rate_counts_no_draft_as_accepted_and_says_so() -> None:
    result = _plan(move="activations")
    full = _full(result)
    assert full.tokens_per_second == pytest.approx(full.sequences / full.step_us * 1e6, abs=0.1)
    assert result.move is not None
    said = [text for text in result.move.assumptions if "as if no draft were accepted" in text]
    assert len(said) == 1
    plain = _plan(move="activations", mtp=None).move
    assert plain is not None
    assert not any("draft" in text for text in plain.assumptions)


def test_an_exchange_is_judged_by_all_tokens_of_a_decode() -> None:
    result = _plan(layout=Layout(tp=8), token_exchange=["o_proj"])
    forecast = result.forecast
    times = judge(result.planned, forecast.hardware, forecast.batches).phases["decode"]
    assert times.tokens == ROWS
    assert times.rows == ROWS // 8


def test_linears_are_chosen_by_all_tokens_of_a_decode() -> None:
    """512 sequences of four tokens hide as much as 2,048 that draft nothing, as far as they read.

    So with drafts more linears hide than without.
    """
    saved = [
        plan_model(
            "DeepSeek-V3",
            "auto",
            Layout(dp=8, ep=True),
            hardware="H200",
            batch=512,
            hide_in="decode",
            mtp=mtp,
        )
        for mtp in (None, 3)
    ]
    assert all(result.prefetch.phases[1].hidden for result in saved)
    assert saved[1].memory.saved_bytes_min > 2 * saved[0].memory.saved_bytes_min


def test_the_cache_is_asked_for_sequences() -> None:
    """200 sequences of 4,096 tokens exceed the cache; their 800 drafts and tokens are no more."""
    (note,) = [t for t in _plan(batch=200).warnings if t.startswith("a decode of ")]
    assert note.startswith("a decode of 200 sequences after 4,096 tokens each asks for 819,200 ")


PLAIN = Batch(ROWS, 1000.0, decode=True)
DRAFTING = Batch(ROWS, 1000.0, decode=True, drafted=3)


def _attention(model: str, kind: type[Any]) -> Any:
    blueprint = plan_model(model, layout=Layout(dp=8, ep=True)).planned.model.blueprint
    segments = [segment for layer in blueprint.layers for segment in layer]
    return next(s.attention for s in segments if isinstance(s.attention, kind))


@pytest.mark.parametrize(
    ("model", "kind", "spared"),
    [
        ("DeepSeek-V3", LatentAttention, 1000 * 576 * 2),
        ("Qwen3-235B-A22B", GroupedAttention, 1000 * 2 * 4 * 128 * 2),
        ("DeepSeek-V3.2", LatentAttention, 0),
    ],
)
def test_drafts_of_a_sequence_read_its_cache_together(
    model: str, kind: type[Any], spared: int
) -> None:
    """Three of four tokens read nothing more, unless each chooses what it attends to."""
    attention = _attention(model, kind)
    alone, together = (attention.work("bfloat16", 1, batch) for batch in (PLAIN, DRAFTING))
    assert together.flops == alone.flops
    assert alone.moved_bytes - together.moved_bytes == (ROWS - SEQUENCES) * spared


def test_a_state_is_read_once_a_sequence_and_written_after_each_token() -> None:
    attention = _attention("Qwen3.5-397B-A17B", DeltaNet)
    state = 64 * 128 * 128 * 4
    alone, together = (attention.work("bfloat16", 1, batch) for batch in (PLAIN, DRAFTING))
    assert alone.moved_bytes == 2 * ROWS * state
    assert together.moved_bytes == (SEQUENCES + ROWS) * state


def test_a_decode_without_drafts_is_as_it_was() -> None:
    batch = _plan(mtp=None).forecast.batches["decode"]
    assert batch == Batch(SEQUENCES, 4096, decode=True)
    assert batch.sequences == SEQUENCES
