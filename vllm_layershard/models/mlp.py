"""Mlp: the two linears of a gated MLP, as vLLM builds them everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_layershard.models.shape import Shape


def gated_mlp(
    stem: str, hidden: int, intermediate: int, tp: int, *, whole: bool = False
) -> Iterator[Shape]:
    """`gate_up_proj` and `down_proj`; `whole`: not split by tensor parallelism."""
    width = intermediate if whole else intermediate // tp
    yield Shape(f"{stem}.gate_up_proj", (width, width), hidden, "none" if whole else "out")
    yield Shape(f"{stem}.down_proj", (hidden,), width, "none" if whole else "in")
