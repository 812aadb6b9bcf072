"""Counts as a person reads them."""

from __future__ import annotations

import re

import pytest

from console import said
from vllm_layershard.estimate.wording import nics


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "1 NIC"), (8.0, "8 NICs"), (0.5, "0.5 NICs"), (1e9, "1,000,000,000 NICs")],
)
def test_nics(count: float, words: str) -> None:
    assert nics(count) == words


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
