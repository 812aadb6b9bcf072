"""RequantisedFp8Kernel: vLLM's requantisation, and torch's product in the input's dtype."""

from __future__ import annotations

import torch
from torch import nn
from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import (
    Fp8BlockScaledMMLinearKernel,
)
from vllm.model_executor.layers.quantization.utils.fp8_utils import requant_weight_ue8m0_inplace
from vllm.model_executor.utils import replace_parameter


class RequantisedFp8Kernel(Fp8BlockScaledMMLinearKernel):
    apply_input_quant = False

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        params = self._get_layer_params(layer)
        weight, scale = params.weight.data, params.block_scale.data
        requant_weight_ue8m0_inplace(weight, scale, block_size=layer.weight_block_size)
        replace_parameter(layer, params.WEIGHT, weight)
        replace_parameter(layer, params.block_scale_attr, scale)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor, Bs: torch.Tensor
    ) -> torch.Tensor:
        rows, columns = self.weight_group_shape
        scale = Bs.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return nn.functional.linear(A, (B.float() * scale).to(A.dtype))
