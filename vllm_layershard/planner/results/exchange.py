"""Exchange: what an exchange of tokens costs and gains beside plain tensor parallelism."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.estimate import Estimate, Forecast, Hardware, PhaseName
from vllm_layershard.estimate.capacity import limit_of
from vllm_layershard.estimate.exchange.judge import judge
from vllm_layershard.estimate.exchange.linears import Alike
from vllm_layershard.estimate.exchange.outcome import ExchangeOutcome, ExchangeTimes
from vllm_layershard.models import Sharding, rank_weight_bytes
from vllm_layershard.models.exchange import without_exchange
from vllm_layershard.planner.results.document import microseconds


class ExchangedLinear(NamedTuple):
    """Linears alike, of one name, in so many layers. Widths are elements of the whole linear.

    `whole_bytes` of a layer are on every rank that stores it, `split_bytes` on each rank of plain
    tensor parallelism. A rank sends `exchange_bytes` and `gather_bytes` a token and layer, in the
    place of `all_reduce_bytes`; `bytes_ratio` is theirs. From `least_tp` ranks on it is below 1.
    `sequence_parallel_ratio` is that of the exchange to a reduce-scatter; it is not served yet.
    """

    name: str
    layer_ids: tuple[int, ...]
    input_width: int
    output_width: int
    whole_bytes: int
    split_bytes: int
    all_reduce_bytes: float
    exchange_bytes: float
    gather_bytes: float
    bytes_ratio: float
    sequence_parallel_ratio: float
    least_tp: int


class ExchangedPhase(NamedTuple):
    """One forward of `tokens` a rank, of which a rank computes `rows`; a layer's mean.

    `split`: as plain tensor parallelism has the linear, `whole`: with the exchange, each with its
    product and its collectives. The layer takes `longer_us` longer (below 0: it gains), and the
    forward `longer_share` of its compute; with what the plan's movements expose
    `with_movement_share`, as if each pipeline stage lost as much as the worst. None: not estimated.
    """

    phase: PhaseName
    tokens: int
    rows: int
    split_product_us: float
    split_collectives_us: float
    whole_product_us: float
    whole_collectives_us: float
    longer_us: float
    longer_share: float
    with_movement_share: float | None
    wins: bool


class Exchange(NamedTuple):
    """The linears, the bytes of them on the ranks that hold most, and when it pays.

    `plain_bytes`: under plain tensor parallelism; `replicated_bytes`: whole on every rank;
    `sharded_bytes`: as planned, slots included. `tokens_gained` are the KV-cache tokens that every
    rank has room for beside plain tensor parallelism that shards nothing; below 0 they are fewer.
    `wins_from_tokens` are the fewest of a forward from
    which on it is quicker; None if no number is, or nothing is estimated. `unhidden_tokens`: from
    so many on it saves as many bytes as its weights move, had these nothing to hide behind.
    """

    tp: int
    linears: tuple[ExchangedLinear, ...]
    plain_bytes: int
    replicated_bytes: int
    sharded_bytes: int
    tokens_gained: int
    verdict: str
    pays_in: tuple[PhaseName, ...]
    wins_from_tokens: int | None
    unhidden_tokens: int | None
    phases: tuple[ExchangedPhase, ...]
    assumptions: tuple[str, ...]
    lacking: tuple[str, ...]


def exchange_of(sharding: Sharding, forecast: Forecast, kv_cache_dtype: str) -> Exchange:
    """Judge it for the forecast's batches. The sharding exchanges something."""
    found: ExchangeOutcome = judge(sharding, forecast.hardware, forecast.batches)
    return Exchange(
        tp=sharding.deployment.layout.tp,
        linears=tuple(map(_linear, found.linears)),
        plain_bytes=found.held.plain,
        replicated_bytes=found.held.replicated,
        sharded_bytes=found.held.sharded,
        tokens_gained=_tokens_gained(sharding, forecast.hardware, kv_cache_dtype),
        verdict=found.verdict,
        pays_in=found.pays_in,
        wins_from_tokens=found.wins_from,
        unhidden_tokens=found.unhidden,
        phases=tuple(
            _phase(name, times, _exposed(name, sharding, forecast))
            for name, times in found.phases.items()
        ),
        assumptions=found.assumptions,
        lacking=found.lacking,
    )


def _tokens_gained(sharding: Sharding, hardware: Hardware, kv_cache_dtype: str) -> int:
    """As those of `CacheLimit`, from what plain tensor parallelism holds."""
    plain = rank_weight_bytes(sharding.model, without_exchange(sharding.deployment))
    grown = (
        whole.total - split.total for whole, split in zip(sharding.weight_bytes, plain, strict=True)
    )
    saved = zip(sharding.saved_bytes, grown, strict=True)
    beside = tuple(saved_bytes - more for saved_bytes, more in saved)
    counted = sharding._replace(weight_bytes=plain, saved_bytes=beside)
    return limit_of(counted, hardware, kv_cache_dtype).tokens_gained


def _linear(one: Alike) -> ExchangedLinear:
    traffic = one.traffic
    ranks = traffic.ranks  # so many tokens fill every rank's row
    return ExchangedLinear(
        name=one.name,
        layer_ids=one.layer_ids,
        input_width=traffic.inner,
        output_width=traffic.width,
        whole_bytes=one.whole_bytes,
        split_bytes=one.split_bytes,
        all_reduce_bytes=traffic.reduced(ranks) / ranks,
        exchange_bytes=traffic.exchanged(ranks) / ranks,
        gather_bytes=traffic.gathered(ranks) / ranks,
        bytes_ratio=round(traffic.ratio, 4),
        sequence_parallel_ratio=round(traffic.scattered_ratio, 4),
        least_tp=traffic.least_ranks,
    )


def _exposed(name: PhaseName, sharding: Sharding, forecast: Forecast) -> float | None:
    """Seconds by which the movements lengthen a phase, on all stages together."""
    if not isinstance(forecast, Estimate):
        return None
    (phase,) = (phase for phase in forecast.phases if phase.name == name)
    return phase.asked.forward.exposed * sharding.deployment.layout.pp


def _phase(name: PhaseName, times: ExchangeTimes, exposed: float | None) -> ExchangedPhase:
    return ExchangedPhase(
        phase=name,
        tokens=times.tokens,
        rows=times.rows,
        split_product_us=microseconds(times.split.product),
        split_collectives_us=microseconds(times.split.collectives),
        whole_product_us=microseconds(times.whole.product),
        whole_collectives_us=microseconds(times.whole.collectives),
        longer_us=microseconds(times.longer),
        longer_share=round(times.share, 4),
        with_movement_share=(
            None if exposed is None else round(times.share + exposed / times.forward, 4)
        ),
        wins=times.wins,
    )
