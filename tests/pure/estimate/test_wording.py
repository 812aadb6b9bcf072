"""Counts as a person reads them."""

from __future__ import annotations

import re

import pytest

from console import said
from vllm_layershard.estimate.wording import changes, nics


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "1 NIC"), (8.0, "8 NICs"), (0.5, "0.5 NICs"), (1e9, "1,000,000,000 NICs")],
)
def test_nics(count: float, words: str) -> None:
    assert nics(count) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.5, "slows by 50%"),
        (0.0, "slows by 0.00%"),
        (-0.1693, "is 17% faster"),
        (-0.0123, "is 1.23% faster"),
        (-0.00001, "slows by 0.00%"),
    ],
)
def test_what_takes_less_time_is_faster(share: float, words: str) -> None:
    assert changes(share) == words


def test_a_decode_that_spares_reading_the_weight_is_faster() -> None:
    """Each rank reads its rows alone, and few tokens take less time than that."""
    flags = ("--dp", "4", "--pp", "2", "--placement", "striped", "--move", "activations")
    text = said("plan", "--model", "GLM-4.7", "--hardware", "RTX-PRO-6000", *flags, "--batch", "1")
    (verdict,) = re.findall(r"decode at batch 1 [^;]* where activations move,[^;(]*", text)
    assert re.search(r"batch 1 is \d+% faster where activations move, slows by \d+%", verdict)
    assert "-" not in verdict
    assert re.search(r"verdict .*; decode at batch 1 is \d+% faster where activations move", text)


@pytest.mark.parametrize("hardware", ["H200", "B200"])
def test_a_range_whose_ends_read_alike_is_one(hardware: str) -> None:
    flags = ("--dp", "8", "--ep", "--batch", "512", "--tokens", "128K", "--prefetch-step", "2")
    text = said("plan", "--model", "DeepSeek-V3", "--hardware", hardware, *flags)
    shares = [
        share for line in text.splitlines() for share in re.findall(r"exposed .*\((.*)\)", line)
    ]
    assert len(shares) == 3, "two phases, and the stripes that are offered"
    for share in shares:
        ends = share.split(" to ")
        assert len({*ends}) == len(ends), share
