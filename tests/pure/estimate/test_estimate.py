"""The overlap against literal events and a second, slower simulator; times; verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import forecast, profile, profile_names
from vllm_layershard.estimate.broadcast import broadcast_seconds
from vllm_layershard.estimate.forwards.movements import Movement, movements
from vllm_layershard.estimate.forwards.overlap import (
    Span,
    TimedLayer,
    TimedOperation,
    simulate,
    trace,
)
from vllm_layershard.estimate.nodes import widest
from vllm_layershard.models import Deployment, read_model, shard_model
from vllm_layershard.plan import ParallelLayout, Series, build_plan

MIB = 1 << 20


def layers_of(seconds: list[float], before: float = 0.0) -> list[TimedLayer]:
    """Layers that take `before` and then a linear `x` of the given time."""
    return [
        TimedLayer(i, (TimedOperation("", before), TimedOperation("x", s)))
        for i, s in enumerate(seconds)
    ]


def moves_of(n: int, step: int, seconds: float, ranks: int = 2) -> tuple[Movement, ...]:
    series = Series(name="x", layer_ids=tuple(range(n)), layer_bytes=1)
    prefixes = [[f"model.layers.{i}.x" for i in range(n)]]
    return movements(build_plan([series], ranks, step), prefixes, lambda _: seconds)


def test_step_zero_exposes_every_movement() -> None:
    forward = simulate(layers_of([10.0] * 4), moves_of(4, 0, 3.0))
    assert (forward.compute, forward.fetch, forward.exposed) == (40.0, 12.0, 12.0)


def test_work_before_the_linear_hides_what_step_zero_launches() -> None:
    forward = simulate(layers_of([7.0] * 4, before=3.0), moves_of(4, 0, 3.0))
    assert forward.exposed == 0.0


def test_step_one_exposes_only_the_first() -> None:
    forward = simulate(layers_of([10.0] * 4), moves_of(4, 1, 3.0))
    assert forward.exposed == 3.0
    assert not forward.link_bound


def test_a_kept_first_layer_hides_what_the_second_needs() -> None:
    """Without it 3 of 10 seconds are exposed, however far ahead: see above."""
    series = Series(name="x", layer_ids=(1, 2, 3), layer_bytes=1, kept_layer=0)
    prefixes = [[f"model.layers.{i}.x" for i in (1, 2, 3)]]
    moves = movements(build_plan([series], 2, 1), prefixes, lambda _: 3.0)
    assert [(move.layer_id, move.start_layer) for move in moves] == [(1, 0), (2, 0), (3, 2)]
    forward = simulate(layers_of([10.0] * 4), moves)
    assert (forward.fetch, forward.exposed) == (9.0, 0.0)


def test_a_timeline_of_two_layers() -> None:
    assert trace(layers_of([7.0, 7.0], before=1.0), moves_of(2, 1, 5.0)).spans == (
        Span("compute", 0, "", 0.0, 1.0),
        Span("link", 0, "x", 0.0, 5.0),
        Span("stall", 0, "x", 1.0, 4.0),
        Span("compute", 0, "x", 5.0, 7.0),
        Span("link", 1, "x", 5.0, 5.0),
        Span("compute", 1, "", 12.0, 1.0),
        Span("compute", 1, "x", 13.0, 7.0),
    )


def test_both_slow_down_while_both_run() -> None:
    """Half the speed each: four seconds of link take eight beside the compute, which does four."""
    layers = [TimedLayer(0, (TimedOperation("", 10.0, slowdown=1.0), TimedOperation("x", 1.0)))]
    (move,) = moves_of(1, 0, 4.0)
    forward = trace(layers, [move], hindrance=1.0)
    assert forward.spans == (
        Span("compute", 0, "", 0.0, 14.0),
        Span("link", 0, "x", 0.0, 8.0),
        Span("compute", 0, "x", 14.0, 1.0),
    )
    assert (forward.exposed, forward.stalled) == (4.0, 0.0)


def test_a_slot_that_is_still_read_must_not_be_written() -> None:
    first, second = moves_of(2, 0, 1.0)
    early = second._replace(start_layer=0)
    with pytest.raises(AssertionError, match="written while it is still read"):
        simulate(layers_of([1.0, 1.0]), [first, early])


def test_of_two_operations_of_a_name_the_first_waits() -> None:
    """As the nameless ones do, where no operation reads a weight that moves."""
    operations = (TimedOperation("", 1.0), TimedOperation("x", 2.0), TimedOperation("", 4.0))
    moves = [move._replace(suffix="") for move in moves_of(2, 1, 3.0)]
    for run in (simulate, trace):
        forward = run([TimedLayer(0, operations), TimedLayer(1, operations)], moves)
        assert (forward.compute, forward.stalled, forward.exposed) == (14.0, 3.0, 3.0)


def test_a_movement_that_nothing_starts_or_awaits_is_found() -> None:
    layers = layers_of([1.0, 1.0])
    (move, _) = moves_of(2, 1, 1.0)
    with pytest.raises(AssertionError, match="layer 0 has no operation for one of"):
        simulate(layers, [move._replace(suffix="y")])
    with pytest.raises(AssertionError, match="x of layer 1 is not started"):
        simulate(layers[1:], [move._replace(layer_id=1)])


def test_a_slow_link_is_the_bound_at_any_step() -> None:
    for step in (0, 1, 2):
        forward = simulate(layers_of([1.0] * 4), moves_of(4, step, 5.0))
        assert forward.link_bound
        assert forward.compute + forward.exposed >= 4 * 5.0


@given(
    compute=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    fetch=st.integers(0, 30),
    step=st.integers(0, 5),
)
def test_equals_a_clock_that_ticks(compute: list[int], fetch: int, step: int) -> None:
    if step >= len(compute):
        return
    forward = simulate(
        layers_of([float(s) for s in compute]), moves_of(len(compute), step, float(fetch))
    )
    assert forward.compute + forward.exposed == ticked(compute, fetch, step)


def ticked(compute: list[int], fetch: int, step: int) -> int:
    """The end of a forward, found by advancing a clock: a queue for the link, one running layer."""
    queue: list[int] = []
    arrived: set[int] = set()
    clock, layer, left, moving = 0, 0, -1, 0
    while layer < len(compute):
        if left == -1:  # at the boundary of `layer`
            first = range(step + 1) if layer == 0 else [layer + step]
            queue += [p for p in first if p < len(compute)]
            left = compute[layer]
            if fetch == 0:
                arrived.update(queue)
                queue.clear()
        if queue and moving == 0:
            moving = fetch
        running = layer in arrived
        clock += 1
        if running:
            left -= 1
        if moving:
            moving -= 1
            if moving == 0:
                arrived.add(queue.pop(0))
        if left == 0:
            layer, left = layer + 1, -1
    return clock


def test_broadcast_times_follow_the_table() -> None:
    """Its times have their latency in them. Less than a latency nothing takes."""
    h200, alpha = profile("h200"), 8.4e-6 + 8 * 3e-6
    eight = widest([range(8)], 8)
    assert broadcast_seconds(128 * MIB, eight, h200) == pytest.approx(128 * MIB / 309e9)
    assert 64 * MIB / 309e9 < broadcast_seconds(64 * MIB, eight, h200) < 64 * MIB / 238e9
    assert broadcast_seconds(1 << 40, eight, h200) == pytest.approx((1 << 40) / 337e9)
    assert broadcast_seconds(4 * MIB, eight, h200) == pytest.approx(4 * MIB / 89e9)
    assert broadcast_seconds(1024, eight, h200) == pytest.approx(alpha)
    assert broadcast_seconds(128 * MIB, widest([range(1)], 8), h200) == 0.0


@given(small=st.integers(1, 1 << 32), more=st.integers(1, 1 << 32))
def test_a_broadcast_of_more_bytes_takes_longer(small: int, more: int) -> None:
    for name in profile_names():
        hardware = profile(name)
        assert broadcast_seconds(
            small + more, widest([range(8)], 8), hardware
        ) >= broadcast_seconds(small, widest([range(8)], 8), hardware)


def test_every_number_of_a_profile_has_a_source() -> None:
    for name in profile_names():
        assert len(profile(name).sources) >= 5
    with pytest.raises(HardwareError, match="known are A100"):
        profile("nothing")


def forecast_of(name: str, hardware: str, layout: ParallelLayout, tokens: int, step: int = 1):
    config = LayerShardConfig(layers=("o_proj",), prefetch_step=step)
    sharding = shard_model(read_model(name), Deployment(layout, ep=True), config)
    return forecast(sharding, profile(hardware), tokens)


def test_a_long_prefill_hides_and_a_short_one_does_not() -> None:
    layout = ParallelLayout(dp=16)
    long = forecast_of("DeepSeek-V3", "H200", layout, 32768)
    assert long.phases[0].hidden
    assert long.verdict.startswith("hidden in prefill from ")
    short = forecast_of("DeepSeek-V3", "H200", layout, 16)
    assert not short.phases[0].hidden
    assert short.phases[0].asked.forward.link_bound
    assert "the link is the bound" in short.verdict


def test_break_even_is_where_it_turns() -> None:
    layout = ParallelLayout(dp=16)
    turn = forecast_of("DeepSeek-V3", "H200", layout, 8192).break_even_tokens
    assert turn is not None
    assert forecast_of("DeepSeek-V3", "H200", layout, turn).phases[0].hidden
    assert not forecast_of("DeepSeek-V3", "H200", layout, turn - 1).phases[0].hidden


def test_the_recommended_step_is_within_a_percent_of_the_best() -> None:
    layout = ParallelLayout(dp=8)
    said = forecast_of("DeepSeek-V3", "H200", layout, 4096)
    totals = {
        step: forecast_of("DeepSeek-V3", "H200", layout, 4096, step).phases[0].asked.forward.total
        for step in range(9)
    }
    assert totals[said.recommended_step] <= min(totals.values()) * 1.01
    smaller = [total for step, total in totals.items() if step < said.recommended_step]
    assert all(total > min(totals.values()) * 1.01 for total in smaller)


def test_all_families_are_forecast() -> None:
    for name in ("DeepSeek-V2-Lite", "DeepSeek-V3.2", "Kimi-K2-Instruct", "GLM-5"):
        for phase in forecast_of(name, "910C", ParallelLayout(dp=8), 4096).phases:
            assert phase.asked.forward.compute > 0
            assert phase.asked.forward.fetch > 0
