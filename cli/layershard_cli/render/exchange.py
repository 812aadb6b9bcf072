"""An exchange of tokens, for a person."""

from __future__ import annotations

from layershard_cli.render.sheet import Sheet
from layershard_cli.render.units import size
from vllm_layershard.estimate.wording import layers, tokens
from vllm_layershard.planner.results.exchange import ExchangedLinear, ExchangedPhase
from vllm_layershard.planner.results.plan_result import PlanResult


def print_exchange(sheet: Sheet, result: PlanResult) -> None:
    """Bytes, times and verdict; the plan exchanges something."""
    found = result.exchange
    assert found is not None, "it was asked"
    sheet.line(f"Tokens that {found.tp} tensor-parallel ranks exchange")
    sheet.pairs(
        [
            *((linear.name, _bytes(linear)) for linear in found.linears),
            (
                "weights a rank",
                f"{size(found.plain_bytes)} split, {size(found.replicated_bytes)} whole, "
                f"{size(found.sharded_bytes)} whole and sharded",
            ),
            (
                "KV cache",
                f"{abs(found.tokens_gained):,} tokens "
                f"{'fewer' if found.tokens_gained < 0 else 'more'} than under plain tensor "
                "parallelism",
            ),
            *((f"{phase.phase}, {tokens(phase.tokens)}", _times(phase)) for phase in found.phases),
            ("exchange", f"{found.verdict} (estimate for {result.forecast.hardware.name})"),
        ]
    )
    for assumption in found.assumptions if found.phases else ():
        sheet.line(f"  - {assumption}")


def _bytes(linear: ExchangedLinear) -> str:
    sent = linear.exchange_bytes + linear.gather_bytes
    return (
        f"{layers(len(linear.layer_ids))}: {sent:,.0f} bytes a token in the place of the "
        f"all-reduce's {linear.all_reduce_bytes:,.0f} ({linear.bytes_ratio:.2f} of them)"
    )


def _times(phase: ExchangedPhase) -> str:
    whole = phase.whole_product_us + phase.whole_collectives_us
    split = phase.split_product_us + phase.split_collectives_us
    said = (
        f"a layer {whole:,.1f} us (product of {phase.rows:,} rows {phase.whole_product_us:,.1f}, "
        f"collectives {phase.whole_collectives_us:,.1f}) in the place of {split:,.1f} us (product "
        f"{phase.split_product_us:,.1f}, all-reduce {phase.split_collectives_us:,.1f}); "
        f"{phase.longer_share:+.1%} of the forward's compute"
    )
    if phase.with_movement_share is None:
        return said
    return f"{said}, with what moves {phase.with_movement_share:+.1%}"
