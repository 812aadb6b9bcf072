"""Shared experts of which ranks would split a group of Quark's OCP MX: vLLM keeps them whole.

Source: vLLM 0.32, models/qwen3_next.py, `_should_replicate_misaligned_shared_expert`;
quantization/utils/config_utils.py, `get_quark_ocp_mx_group_size`.
"""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.parts.feed_forward import FeedForward, GatedMlp
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.bound import Bound
from vllm_layershard.models.quantization.formats.microscaled import BLOCK, Microscaled
from vllm_layershard.models.quantization.formats.split import parts_of
from vllm_layershard.models.shape import Shape

_DOWN: Final = Shape("down_proj", (), 0, "in")


def with_group(mlp: FeedForward, layer: str, quantization: Quantization) -> FeedForward:
    """With the size of its groups, where it is a hybrid's shared expert, which is weighed.

    `layer`: vLLM's name of the layer that it is in.

    Raises:
        ModelError: the config quantises only some of a linear's parts.
    """
    if not isinstance(mlp, GatedMlp) or not (mlp.shared_expert and mlp.weighed):
        return mlp
    found = quantization.format(f"{layer}.{mlp.name}.down_proj", _DOWN)
    if found is None:
        return mlp
    linears, _ = parts_of(found)
    linears = linears.format if isinstance(linears, Bound) else linears
    grouped = isinstance(linears, Microscaled) and not linears.static
    return mlp._replace(group=BLOCK) if grouped else mlp
