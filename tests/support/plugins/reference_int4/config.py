"""ReferenceInt4Config: which linears of a checkpoint are quantised, and in which blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from reference_int4.method import ReferenceInt4LinearMethod


class ReferenceInt4Config(QuantizationConfig):
    def __init__(self, block: tuple[int, int], linears: tuple[str, ...]) -> None:
        super().__init__()
        self.block = block
        self.linears = linears

    def get_name(self) -> str:
        return "reference_int4"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReferenceInt4Config:
        return cls(tuple(config["block"]), tuple(config["linears"]))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        if not isinstance(layer, LinearBase):
            return None
        if prefix.endswith(self.linears):
            return ReferenceInt4LinearMethod(self.block)
        return UnquantizedLinearMethod()
