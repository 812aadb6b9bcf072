"""Linears that are whole on every rank, before which ranks exchange tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_layershard.estimate.exchange.linears import alike, held
from vllm_layershard.estimate.exchange.verdict import more_bytes
from vllm_layershard.models import Sharding


def warnings_on_exchange(sharding: Sharding) -> Iterator[str]:
    """What a rank holds of them, beside plain tensor parallelism."""
    linears = alike(sharding)
    plain, whole, planned = held(sharding, linears)
    names = ", ".join(sharding.deployment.exchange)
    yield (
        f"a rank holds at most {planned:,} bytes of {names}; with plain tensor parallelism it "
        f"would hold {plain:,}. What is saved is counted from {whole:,}, whole on every rank"
    )
    if more := more_bytes(linears):
        yield f"token_exchange moves more than it spares: {more}"
