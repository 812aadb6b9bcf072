"""Mlp: the two linears of a gated MLP, as vLLM builds them everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_layershard.models.shape import Shape, Split
from vllm_layershard.models.sources.config_file import ConfigFile, shown


def require_silu(config: ConfigFile) -> None:
    """Refuse an activation that vLLM does not run: the MLPs of these families know SiLU only.

    Raises:
        ModelError: names the file and the activation.
    """
    activation = config.string("hidden_act")
    if activation != "silu":
        problem = f"{shown(activation)}: vLLM runs this architecture with 'silu' only"
        config.fail("hidden_act", problem)


def gated_mlp(
    stem: str,
    hidden: int,
    intermediate: int,
    tp: int,
    *,
    whole: bool = False,
    bias: bool = False,
) -> Iterator[Shape]:
    """`gate_up_proj` and `down_proj`; `whole`: not split by tensor parallelism."""
    width = intermediate if whole else intermediate // tp
    rows: Split = "none" if whole else "out"
    columns: Split = "none" if whole else "in"
    yield Shape(f"{stem}.gate_up_proj", (width, width), hidden, rows, bias=bias)
    yield Shape(f"{stem}.down_proj", (hidden,), width, columns, bias=bias)
