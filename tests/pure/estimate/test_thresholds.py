"""From how many tokens on a prefill hides, with the least and the most contention; never waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import document
from vllm_layershard.config import LayerShardConfig
from vllm_layershard.estimate import Estimate, Hardware, forecast, profile
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.forecast import prefill
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.forwards.thresholds import MAX_TOKENS, fewest_tokens
from vllm_layershard.models import Deployment, Sharding, read_model, shard_model
from vllm_layershard.plan import ParallelLayout

BOTH = ("o_proj", "q_b_proj")


def sharding_of(
    names: tuple[str, ...] = BOTH, step: int = 1, dp: int = 8, **options: object
) -> Sharding:
    config = LayerShardConfig(layers=names, prefetch_step=step, **options)  # type: ignore[arg-type]
    return shard_model(read_model("DeepSeek-V3"), Deployment(ParallelLayout(dp=dp), True), config)


def estimate_of(sharding: Sharding, hardware: Hardware, tokens: int = 8192) -> Estimate:
    said = forecast(sharding, hardware, tokens)
    assert isinstance(said, Estimate)
    return said


@pytest.mark.parametrize("hardware", ["A100", "H20", "H200", "B300", "910C"])
@pytest.mark.parametrize("names", [("o_proj",), BOTH])
@pytest.mark.parametrize("tokens", [512, 65536])
def test_each_threshold_is_exact(hardware: str, names: tuple[str, ...], tokens: int) -> None:
    device, sharding = profile(hardware), sharding_of(names)
    waits, least, most = estimate_of(sharding, device, tokens).thresholds
    assert waits is not None
    assert least is not None
    assert most is not None
    assert least < most
    forwards = Forwards(sharding, device)
    for turn, low in ((least, True), (most, False)):
        assert forwards.run(prefill(turn), 1, least=low).slowdown <= 0.01
        assert forwards.run(prefill(turn - 1), 1, least=low).slowdown > 0.01
    assert forwards.run(prefill(waits), 1, least=True).stalled == 0
    assert forwards.run(prefill(waits - 1), 1, least=True).stalled > 0
    assert forwards.run(prefill(waits), 1).stalled == 0, "with more contention it waits no longer"


def test_deepseek_v3_at_8k_hides_with_little_contention_and_not_with_much() -> None:
    """The waiting alone is 0.1 %: what decides is the contention, which nobody has measured."""
    said = estimate_of(sharding_of(), profile("H200"))
    phase = said.phases[0]
    assert said.contention == (0.15, 0.35)
    assert not phase.hidden
    assert phase.with_least.hidden
    assert phase.asked.forward.stalled < 0.0015 * phase.asked.forward.compute
    assert said.thresholds.hidden_least is not None
    assert 5_000 < said.thresholds.hidden_least < 8192 < (said.break_even_tokens or 0)


def test_the_verdict_has_all_thresholds() -> None:
    flags = ["--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", "H200"]
    prefetch = document("plan", *flags, "--tokens", "16K")["prefetch"]
    least, most = prefetch["break_even_range"]
    waits = prefetch["never_waits_tokens"]
    assert prefetch["contention"] == [0.15, 0.35]
    assert most == prefetch["break_even_tokens"]
    assert prefetch["verdict"].startswith(
        f"hidden in prefill from {most:,} tokens a rank (at most 1% from {least:,} to {most:,} "
        f"with contention of 15% to 35%; never waits from {waits:,}); decode at batch 64 "
    )
    shorter = document("plan", *flags, "--tokens", "8K")["prefetch"]
    low, high = shorter["phases"][0]["exposed_range_us"]
    compute = shorter["phases"][0]["compute_us"]
    assert high == shorter["phases"][0]["exposed_us"]
    assert low / compute < 0.01 < high / compute
    assert f"slows by {low / compute:.2%} to {high / compute:.2%}: " in shorter["verdict"]
    assert f"it hides from {most:,} tokens a rank (at most 1% from" in shorter["verdict"]


def test_what_was_measured_is_no_range() -> None:
    measured = replace(profile("H200"), product_slowdown=Figure(0.2, "measured", "our own"))
    said = estimate_of(sharding_of(), measured)
    assert said.contention == (0.2, 0.2)
    assert said.phases[0].least is None
    assert said.thresholds.hidden_least == said.thresholds.hidden_most
    assert "contention" not in said.verdict
    assert "never waits from" in said.verdict
    less = replace(profile("H200"), product_slowdown=Figure(0.1, "assumed", "our own"))
    assert less.contention == (0.1, 0.1)


def test_pulls_take_no_cores_and_replicated_layers_never_wait() -> None:
    pulls = estimate_of(sharding_of(placement="striped"), profile("H200"))
    assert pulls.contention == (0.0, 0.0)
    assert pulls.phases[0].least is None
    still = estimate_of(sharding_of(placement="replicated"), profile("H200"))
    assert still.thresholds == (1, 1, 1)
    assert still.verdict == "nothing moves: the placement is replicated"


def test_a_first_linear_that_nothing_precedes_always_waits() -> None:
    said = estimate_of(sharding_of(("fused_qkv_a_proj",)), profile("H200"), 65536)
    assert said.thresholds.never_waits is None
    assert "its first layers always wait" in said.verdict


@given(
    root=st.integers(2, MAX_TOKENS),
    power=st.floats(0.5, 3),
    flat=st.booleans(),
    known=st.integers(1, MAX_TOKENS),
    guess=st.floats(0, 1e12),
)
def test_the_search_finds_the_fewest(
    root: int, power: float, flat: bool, known: int, guess: float
) -> None:
    asked = []

    def progress(tokens: int) -> float:
        assert 1 <= tokens <= MAX_TOKENS
        asked.append(tokens)
        reached = (tokens**power - (root - 0.5) ** power) / root**power
        return min(reached, 0.0) if flat else reached

    assert fewest_tokens(progress, known, guess) == root
    assert len(asked) < 200
    assert fewest_tokens(progress, known, guess, enough=root) == root
    assert fewest_tokens(lambda tokens: -1.0, known, guess) is None
    assert fewest_tokens(lambda tokens: 1.0, known, guess) == 1


@pytest.mark.parametrize("model", ["DeepSeek-V3", "GLM-5-FP8"])
def test_where_stages_lose_alike_a_last_digit_moves_no_threshold(model: str) -> None:
    deployment = Deployment(ParallelLayout(dp=2, pp=3), ep=True, gpus_reach=True)
    sharding = shard_model(read_model(model), deployment, LayerShardConfig(layers=BOTH))
    device = profile("H200")
    rate = device.memory_bandwidth
    assert rate is not None
    found = set()
    for digits in range(8):
        nudged = rate._replace(value=rate.value * (1 + digits * 1e-15))
        found.add(estimate_of(sharding, replace(device, memory_bandwidth=nudged)).thresholds)
    assert len(found) == 1


def test_of_stages_that_lose_alike_the_one_that_computes_least_is_shown() -> None:
    """It loses the largest share of its compute."""
    deployment = Deployment(ParallelLayout(dp=2, pp=3), ep=True, gpus_reach=True)
    sharding = shard_model(read_model("DeepSeek-V3"), deployment, LayerShardConfig(layers=BOTH))
    forwards, batch = Forwards(sharding, profile("H200")), prefill(8192)
    stages = forwards.by_stage(batch, 1)
    most = max(stage.exposed for stage in stages)
    alike = [stage for stage in stages if most - stage.exposed < 1e-12]
    assert len({stage.compute for stage in alike}) > 1
    assert forwards.run(batch, 1).compute == min(stage.compute for stage in alike)
