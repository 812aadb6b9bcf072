"""Where a checkpoint on disk and a rank's memory at run time differ, and by what rule.

docs/planning.md shows the same table; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vllm_layershard.models.quantization import FUSED


@dataclass(frozen=True, slots=True)
class Transform:
    """One row: what it is about, how it lies on disk, and in memory."""

    what: str
    on_disk: str
    at_run_time: str


TRANSFORMS: Final = (
    Transform(
        "fused linears",
        "one tensor a part (`gate_proj`, `up_proj`; `q_proj`, `k_proj`, `v_proj`)",
        "one linear; its rows are the sum of the parts'",
    ),
    Transform(
        "the indexer's `wk_weights_proj`",
        "`wk`, which may be fp8 with scales, and `weights_proj`",
        "one unquantised linear",
    ),
    Transform(
        "`kv_b_proj` under MLA",
        "one linear",
        "the same, and where it is quantised a dequantised copy (`derived`)",
    ),
    Transform(
        "`kv_b_proj` under dense MLA on Ascend",
        "one linear, unquantised",
        "the same, and copies of both its parts (`derived`)",
    ),
    Transform(
        "number formats",
        "float32, float16 or bfloat16",
        "the dtype that the model runs in; converted while loading",
    ),
    Transform(
        "packed low-bit weights",
        "the packing of the method",
        "the kernel's packing; as many bytes",
    ),
    Transform(
        "zero points of symmetric gptq",
        "`qzeros`, all alike",
        "dropped",
    ),
    Transform(
        "one scale a tensor (fp8, nvfp4)",
        "one for each part of a fused linear",
        "one; counted as on disk, 4 bytes a part",
    ),
    Transform(
        "the shape of packed weights (`weight_shape`)",
        "one for each part of a fused linear",
        "one of as many elements; parts are loaded over one another",
    ),
    Transform(
        "Ascend W8A8",
        "int8 rows with scales and offsets",
        "NZ tiles; copies of scales in float32, which fp8 has in the place of its scales",
    ),
    Transform(
        "int4 experts on Ascend",
        "packed rows with scales",
        "the same, and offsets of zero as large as the scales",
    ),
    Transform(
        "`fused_qkv_a_proj` and `q_b_proj` of sparse MLA in static Ascend W8A8",
        "as other linears",
        "the same, and on Ascend copies of both and of scales (`derived`), unless MLAPO is off",
    ),
    Transform(
        "draft (MTP) layers",
        "`layers.{num_hidden_layers}` and those after it, or `mtp.`",
        "not loaded by the model itself; counted with `--mtp`",
    ),
    Transform(
        "routed experts",
        "one tensor an expert and matrix, or all of a layer stacked",
        "stacked by layer; compared by layer: dtype, weights and scales",
    ),
    Transform(
        "the embedding and the head",
        "the vocabulary as it is; a tied head may be missing",
        "rows padded to a multiple of 64; only scales beside them are compared",
    ),
)

PARTS: Final = {**FUSED, "wk_weights_proj": ("wk", "weights_proj")}
"""A linear's last name in vLLM -> those of its parts on disk, where it is not stored fused."""

DEQUANTISED: Final = frozenset({"wk_weights_proj"})
"""Linears that vLLM keeps unquantised though a part of them may be quantised on disk."""

SCALES: Final = frozenset(
    {
        *("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "scales"),
        *("weight_zero_point", "weight_offset", "weight_shape", "weight_g_idx", "g_idx", "absmax"),
        *("input_scale", "input_global_scale", "input_offset", "deq_scale", "quant_bias"),
    }
)
"""Last names of what only a quantised weight has beside it, or its activations have."""

PACKED: Final = frozenset({"qweight", "qzeros", "weight_packed"})
"""Last names of tensors that hold several weights in an element."""

UNREAD: Final = frozenset({"g_idx"})
"""Last names of tensors that every quantised model of vLLM leaves unread.

Source: vLLM 0.32, quantization/base_config.py, `get_checkpoint_weight_mapper`.
"""

DROPPED: Final = (
    ("qzeros", "qweight", "int32"),
    ("input_scale", "weight_scale_2", "float32"),
    ("weight_zero_point", "weight", "int8"),
)
"""A tensor that is read and dropped, and the planned one, with its dtype, beside which it is.

Source: vLLM 0.32, quantization/auto_gptq.py; modelopt.py, `_DropInputScale`; quark/,
`QuarkW8A8Int8` and `QuarkW8A8Int8MoEMethod`.
"""

COMPUTED: Final = frozenset(
    {
        "weight_scale_fp32",
        "aclnn_input_scale",
        "aclnn_input_scale_reciprocal",
        "aclnn_input_offset",
    }
)
"""Tensors that vllm-ascend makes while loading: no file has them."""

SHARED: Final = frozenset({"weight_shape"})
"""Tensors that each part of a fused linear has, and that all have one place for in memory.

Those of one element need not be named. Source: vLLM 0.32, model_executor/parameter.py,
`BasevLLMParameter`, and the schemes of compressed-tensors that make one.
"""

RENAMED: Final = ((".attn.", ".self_attn."),)
"""Parts of a prefix that vLLM's weight mappers rename: (in vLLM, on disk). gpt-oss."""

STEMS: Final = ("model", "language_model.model", "model.language_model", "language_model", "")
"""What may stand before `layers.` on disk, tried after the planner's own."""

DRAFT: Final = re.compile(r"(^|\.)(eh_proj|enorm|hnorm|shared_head|mtp|final_layernorm)\.")
"""Names that only draft layers have."""

CONVERTED: Final = frozenset({"float64", "float32", "bfloat16", "float16"})
"""Formats that are converted into each other while loading."""

TORCH_DTYPES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}
"""The format's words -> torch's; what is not in it has none."""
