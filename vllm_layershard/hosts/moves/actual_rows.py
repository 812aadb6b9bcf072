"""Linears that vLLM runs on fewer rows than the forward has: their tokens cannot move.

Note [Actual rows]
A forward is padded to the size of a captured graph, and ranks agree on the padded number. A state
space layer runs as one op of vLLM's, outside the graphs, and some of them give a linear the actual
tokens alone, or those of prefills and of decodes apart. Such a linear has other rows than the ranks
have agreed on. Which layers do not is listed; any other is refused. Source: vLLM 0.32,
model_executor/layers/mamba/short_conv.py, mamba_mixer.py, linear/bailing_linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import nn

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.names import MAMBA_BASE

PADDED: Final = frozenset(
    {"GatedDeltaNetAttention", "MambaMixer2", "BailingMoeV3KimiDeltaAttention"}
)
"""Classes of vLLM 0.32 whose linears run on all rows of the forward, and whose subclasses' do."""


def check_rows(model: nn.Module, config: LayerShardConfig, named: Sequence[Any]) -> None:
    """Refuse to move the tokens of a linear of `named` that may run on other rows.

    Raises:
        HostError: names the linear and the class that it belongs to; or this version of vLLM has
            no common class of such layers.
    """
    if config.move == "weights":
        return
    base = MAMBA_BASE.imported()
    for layer in model.modules():
        if not isinstance(layer, base) or runs_padded(type(layer)):
            continue
        within = {id(each) for each in layer.modules()}
        for linear in named:
            if id(linear) in within:
                raise HostError(
                    f"{KEY}.move = {config.move!r}: {linear.prefix} may run on fewer tokens than "
                    f"the ranks have agreed on: vLLM's {type(layer).__name__} leaves padding out; "
                    "leave it out, or use move 'weights'"
                )


def runs_padded(layer: type) -> bool:
    """Whether a state space layer of this class is known to run its linears on all rows."""
    return any(each.__name__ in PADDED for each in layer.__mro__)
