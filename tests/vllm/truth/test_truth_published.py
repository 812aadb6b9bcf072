"""The same as published, on layouts that divide their heads; hundreds of layers take minutes."""

import pytest

from truth.compare import Case, Truth, names
from truth.stated import (
    GLM_4_7_FLASH,
    MINISTRAL_3_8B,
    MISTRAL_7B,
    QWEN2_5_72B,
    QWEN3_5_27B,
    QWEN3_VL_4B,
    QWEN3_VL_30B_A3B,
)

DENSE = ((1, 1, False), (2, 1, False), (4, 1, False), (4, 2, False))
EXPERTS = (*DENSE, (4, 1, True), (1, 2, True), (2, 2, True))

CASES = {
    "Qwen2.5-72B": Case(QWEN2_5_72B, layouts=DENSE),
    "Mistral-7B": Case(MISTRAL_7B, layouts=DENSE),
    "Ministral-3-8B": Case(MINISTRAL_3_8B, layouts=DENSE),
    "Qwen3.5-27B": Case(QWEN3_5_27B, layouts=DENSE),
    "GLM-4.7-Flash": Case(GLM_4_7_FLASH, layouts=EXPERTS),
    "Qwen3-VL-4B": Case(QWEN3_VL_4B, layouts=DENSE),
    "Qwen3-VL-30B-A3B": Case(QWEN3_VL_30B_A3B, layouts=EXPERTS),
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
