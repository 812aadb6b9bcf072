"""What auto-round may state of activations, packing and backend, where vLLM's class looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

BACKENDS: Final = ("auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin")
"""Source: vLLM 0.32, inc/inc.py, `INCConfig.SUPPORTED_BACKENDS`."""

FORMATS: Final = (
    *("auto_round:auto_gptq", "auto_round:auto_awq"),
    *("auto_round:fp8", "auto_round:llm_compressor"),
)
"""Source: vLLM 0.32, inc/inc.py, `INCConfig.SUPPORTED_FORMATS`."""


class Fixed(NamedTuple):
    """The only `values` that a section may state beside weights of this type.

    `bits`: of the weights; None: any. An absent key is as if it were stated.
    """

    data_type: str
    bits: int | None
    values: Mapping[str, Any]
    source: str


FIXED: Final = (
    Fixed(
        "fp",
        None,
        {
            "packing_format": "auto_round:fp8",
            "act_bits": 8,
            "act_data_type": "fp",
            "act_sym": True,
            "act_dynamic": True,
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
        },
        "inc/inc.py, `_validate_fp8_block_quantization` and `_validate_raw_config`",
    ),
    Fixed(
        "mx_fp",
        None,
        {"packing_format": "auto_round:llm_compressor"},
        "inc/inc.py, `_validate_mxfp_quantization`",
    ),
    Fixed(
        "mx_fp",
        8,
        {
            "act_bits": 8,
            "act_data_type": "mx_fp",
            "act_group_size": 32,
            "act_sym": True,
            "act_dynamic": True,
        },
        "inc/inc.py, `_validate_raw_config`",
    ),
)
