"""Prompts that are shorter or longer than the prefill's forward, and cached tokens before them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import complaint, document, said
from vllm_layershard.errors import ConfigError
from vllm_layershard.estimate.forwards.batches import ONE_PROMPT, Prompts, prefill
from vllm_layershard.planner.plan import plan_model

FLAGS = ["--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", "H200", "--tokens", "16K"]


def attended(tokens: int, prompts: Prompts, pcp: int = 1) -> int:
    """Tokens that all tokens of a forward attend to: half of their own prompt, and the cached."""
    left, pairs = tokens * pcp, 0.0
    while left:
        here = min(left, prompts.length or left)
        pairs += here * (here / 2 + prompts.cached)
        left -= here
    return round(pairs)


@given(
    tokens=st.integers(1, 1 << 20),
    length=st.integers(1000, 1 << 20),
    cached=st.integers(0, 1 << 20),
    pcp=st.sampled_from([1, 2, 4]),
)
def test_a_token_attends_to_half_of_its_own_prompt(
    tokens: int, length: int, cached: int, pcp: int
) -> None:
    prompts = Prompts(length, cached)
    batch = prefill(tokens, pcp, prompts)
    assert batch.tokens == tokens
    assert not batch.decode
    if length < tokens * pcp:
        assert batch.context * tokens * pcp == pytest.approx(attended(tokens, prompts, pcp))
    else:
        assert batch.context == cached + length / 2, "the mean piece of a longer prompt"


def test_one_prompt_is_as_long_as_the_forward() -> None:
    assert prefill(8192) == prefill(8192, 1, ONE_PROMPT) == prefill(8192, 1, Prompts(8192))
    assert prefill(8192).context == 4096
    assert prefill(2048, 4).context == 4096, "a prompt on four context-parallel ranks"
    assert prefill(8192, 1, Prompts(None, 1000)).context == 5096


def test_sixteen_prompts_of_1k_compute_half_as_long_as_one_of_16k() -> None:
    """One prompt of 16K takes 30.2 ms a layer, sixteen of 1K about 16."""
    one = document("plan", *FLAGS)["prefetch"]
    many = document("plan", *FLAGS, "--prompt", "1K")["prefetch"]
    layer_ms = [found["phases"][0]["compute_us"] / 61e3 for found in (one, many)]
    assert layer_ms == pytest.approx([30.2, 16.0], rel=0.06)
    assert one["prompt_tokens"] is None
    assert (many["prompt_tokens"], many["cached_tokens"]) == (1024, 0)
    share = many["phases"][0]["exposed_us"] / many["phases"][0]["compute_us"]
    assert 0.008 < share <= 0.01
    assert one["break_even_tokens"] < many["break_even_tokens"] <= 16384


def test_cached_tokens_are_attended_to_and_not_computed() -> None:
    many = document("plan", *FLAGS, "--prompt", "1K")["prefetch"]
    after = document("plan", *FLAGS, "--prompt", "1K", "--cached", "4k")["prefetch"]
    assert after["cached_tokens"] == 4000
    assert after["phases"][0]["context"] == many["phases"][0]["context"] + 4000
    assert after["phases"][0]["compute_us"] > many["phases"][0]["compute_us"]
    assert after["break_even_tokens"] < many["break_even_tokens"]


def test_no_token_need_be_cached() -> None:
    assert document("plan", *FLAGS, "--cached", "0") == document("plan", *FLAGS)
    assert "'0': must be from 1 to" in complaint("plan", *FLAGS, "--prompt", "0")[1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "prefill: one prompt of 16,384 tokens a rank;"),
        (["--prompt", "1K"], "prefill: 16,384 tokens a rank in prompts of 1,024;"),
        (["--prompt", "64K"], "prefill: 16,384 tokens a rank of a prompt of 65,536;"),
        (
            ["--prompt", "2K", "--cached", "6K"],
            "16,384 tokens a rank in prompts of 2,048, each after 6,144 tokens in the cache;",
        ),
    ],
)
def test_the_output_says_what_is_prefilled(flags: list[str], expected: str) -> None:
    assert expected in " ".join(said("plan", *FLAGS, *flags).split())


def test_the_choice_of_linears_goes_by_the_prompts() -> None:
    """What hides behind one prompt of 16K does not all hide behind sixteen of 1K."""
    one = document("plan", *FLAGS, "--layers", "auto")
    many = document("plan", *FLAGS, "--layers", "auto", "--prompt", "1K")
    assert many["memory"]["saved_bytes_min"] < one["memory"]["saved_bytes_min"]
    assert many["prefetch"]["phases"][0]["hidden"]


def test_prompts_without_an_estimate_are_shown_too() -> None:
    flags = ["--model", "DeepSeek-V3", "--dp", "16", "--ep", "--hardware", "MI300X"]
    prefetch = document("plan", *flags, "--prompt", "1K")["prefetch"]
    assert prefetch["lacking"]
    assert prefetch["prompt_tokens"] == 1024


@pytest.mark.parametrize("flag", ["--prompt", "--cached"])
def test_flags_are_read_as_tokens(flag: str) -> None:
    code, message = complaint("plan", *FLAGS, flag, "many")
    assert code == 2
    assert "'many' is not a number of tokens" in message


def test_arguments_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"prompt = 0: give a whole number from 1 to "):
        plan_model("DeepSeek-V3", prompt=0)
    with pytest.raises(ConfigError, match=r"cached = -1: give a whole number from 0 to "):
        plan_model("DeepSeek-V3", cached=-1)
    assert plan_model("DeepSeek-V3", cached=0).forecast.batches["prefill"].context == 4096
