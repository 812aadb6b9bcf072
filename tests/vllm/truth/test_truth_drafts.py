"""The weights and caches of draft (MTP) layers equal those of vLLM's own draft classes."""

import pytest

from tests.vllm.truth import (
    test_truth_grouped,
    test_truth_hybrids,
    test_truth_mla,
    test_truth_wider,
)
from truth.compare import Case, Truth, names
from truth.stated import GLM_4_7_FLASH, QWEN3_5_27B

LAYOUTS = ((1, 1, False), (2, 1, True), (1, 2, True))
LATENT = test_truth_mla.SMALL_LORA | {"num_nextn_predict_layers": 1}
WIDE = test_truth_mla.EIGHT_WAYS | {"num_nextn_predict_layers": 1}
V3 = "deepseek-ai--DeepSeek-V3"
UNQUANTISED = {"quantization_config": None}
GLM = test_truth_grouped.SMALL | test_truth_grouped.MOE | {"n_routed_experts": 16}
DENSE = test_truth_wider.HYBRID | {"mtp_num_hidden_layers": 1}
EXPERTS = test_truth_hybrids.SMALL | {"layer_types": test_truth_hybrids.TYPES, "head_dim": 256}

CASES = {
    "v3": Case(V3, LATENT | UNQUANTISED, LAYOUTS, drafted=1),
    "v3-fp8": Case(V3, WIDE, ((1, 1, False), (2, 2, True)), drafted=1),
    "v3.2": Case("deepseek-ai--DeepSeek-V3.2", LATENT, ((1, 1, False),), drafted=1),
    "glm-5": Case("zai-org--GLM-5", LATENT, ((1, 1, False), (2, 1, True)), drafted=1),
    "glm-4.7": Case("zai-org--GLM-4.7", GLM | {"num_nextn_predict_layers": 1}, LAYOUTS, drafted=1),
    "glm-4.7-flash": Case(
        GLM_4_7_FLASH, test_truth_wider.LATENT | {"num_nextn_predict_layers": 1}, LAYOUTS, drafted=1
    ),
    "qwen3-next": Case(
        "Qwen--Qwen3-Next-80B-A3B-Instruct",
        test_truth_hybrids.SMALL | {"num_nextn_predict_layers": 1},
        LAYOUTS,
        drafted=1,
    ),
    "qwen3.5-dense": Case(QWEN3_5_27B, layouts=LAYOUTS, text=DENSE, drafted=2),
    "qwen3.5": Case("Qwen--Qwen3.5-397B-A17B", layouts=LAYOUTS, text=EXPERTS, drafted=3),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
