"""Scales and packed weights for which a config leaves no place, beside what it says is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.checkpoint.comparison import Disagreement
from vllm_layershard.models.checkpoint.files import Checkpoint
from vllm_layershard.models.checkpoint.transforms import DROPPED, PACKED, SCALES, UNREAD
from vllm_layershard.models.weight_bytes import head_tensors
from vllm_layershard.plan import TensorSpec

_ENDS: Final = re.compile(r"(?:\w+\.){0,8}(lm_head|embed_tokens|word_embeddings)\.(\w+)")
"""A tensor of the head or of the embedding, and its last name."""

_DRAFTS: Final = re.compile(r"(?:^|\.)(?:layers|mtp)\.")


def strays_beside(planned: Iterable[TensorSpec]) -> frozenset[str]:
    """Last names of scales and packed weights for which a server has no place beside these.

    Source: vLLM 0.32, models/utils.py, `AutoWeightsLoader._load_module`, which refuses them.
    """
    dtypes = {tensor.name: tensor.dtype for tensor in planned}
    dropped = {name for name, beside, dtype in DROPPED if dtypes.get(beside) == dtype}
    return (SCALES | PACKED) - UNREAD - dtypes.keys() - dropped


def stray_ends(blueprint: Blueprint, checkpoint: Checkpoint) -> Iterator[Disagreement]:
    """Those of the head and of the embedding, which are not compared else."""
    of_head = strays_beside(head_tensors(blueprint, tp=1))
    of_embedding = (SCALES | PACKED) - UNREAD
    for name, tensor in checkpoint.tensors.items():
        found = _ENDS.fullmatch(name)
        if found is None or _DRAFTS.search(name):
            continue
        if found[2] in (of_head if found[1] == "lm_head" else of_embedding):
            yield Disagreement(name, "nothing", f"{tensor.dtype} {list(tensor.shape)}")
