"""Other weights for a loaded model: what one rank does, and how all ranks do it together."""

from __future__ import annotations

from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.reload.board import Board, NodeBoard, StoreBoard
from vllm_layershard.runtime.reload.reloads import Reloads

__all__ = ["Act", "Board", "NodeBoard", "Reloads", "StoreBoard"]
