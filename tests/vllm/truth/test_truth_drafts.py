"""The weights and caches of draft (MTP) layers equal those of vLLM's own draft classes."""

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.truth import (
    test_truth_grouped,
    test_truth_hybrids,
    test_truth_mla,
    test_truth_wider,
)
from truth.asking import answers_of
from truth.compare import Case, Truth, names
from truth.stated import GLM_4_7_FLASH, QWEN3_5_27B
from vllm_layershard import ConfigError, PlanError, load_model
from vllm_layershard.models import Deployment
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.planner.question import drafting

LAYOUTS = ((1, 1, False), (2, 1, True), (1, 2, True))
LATENT = test_truth_mla.SMALL_LORA | {"num_nextn_predict_layers": 1}
WIDE = test_truth_mla.EIGHT_WAYS | {"num_nextn_predict_layers": 1}
V3 = "deepseek-ai--DeepSeek-V3"
UNQUANTISED = {"quantization_config": None}
GLM = test_truth_grouped.SMALL | test_truth_grouped.MOE | {"n_routed_experts": 16}
DENSE = test_truth_wider.HYBRID | {"mtp_num_hidden_layers": 1}
_FOUR: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "tensor_group"}
_FOUR |= {"group_size": 16, "symmetric": True}
_GROUP = {
    "targets": ["Linear"],
    "weights": _FOUR | {"dynamic": False},
    "input_activations": _FOUR | {"dynamic": "local"},
}
NVFP4 = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {"group_0": _GROUP},
    "ignore": ["lm_head", "re:.*visual.*", "re:.*linear_attn.*"],
}
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
    "qwen3.5-nvfp4": Case(
        QWEN3_5_27B, {"quantization_config": NVFP4}, LAYOUTS[:2], text=DENSE, drafted=1
    ),
    "qwen3.5": Case("Qwen--Qwen3.5-397B-A17B", layouts=LAYOUTS, text=EXPERTS, drafted=3),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)


SERVED = """
import json, sys
from types import SimpleNamespace
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu.pcp_manager import PCPManager

said = {}
for name, (directory, tokens, pcp) in json.load(sys.stdin).items():
    try:
        config = EngineArgs(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            speculative_config={"method": "mtp", "num_speculative_tokens": tokens},
        ).create_engine_config()
        config.parallel_config.prefill_context_parallel_size = pcp
        PCPManager.validate_config(config, supports_mm_inputs=False)
    except (NotImplementedError, ValueError) as refused:  # vLLM's two ways to refuse a model
        said[name] = str(refused)
    else:
        said[name] = None
print(json.dumps(said))
"""
SEVERAL = {
    "v3": Case(V3, LATENT | UNQUANTISED | {"num_nextn_predict_layers": 3}),
    "glm-5": Case("zai-org--GLM-5", LATENT | {"num_nextn_predict_layers": 3}),
    "glm-4.7": Case("zai-org--GLM-4.7", GLM | {"num_nextn_predict_layers": 3}),
    "qwen3-next": Case(
        "Qwen--Qwen3-Next-80B-A3B-Instruct",
        test_truth_hybrids.SMALL | {"num_nextn_predict_layers": 3},
    ),
    "qwen3.5-nvfp4": Case(
        QWEN3_5_27B, {"quantization_config": NVFP4}, LAYOUTS[:2], text=DENSE, drafted=1
    ),
    "qwen3.5": Case("Qwen--Qwen3.5-397B-A17B", text=EXPERTS | {"mtp_num_hidden_layers": 3}),
    "v3-unsaid": Case(V3, LATENT | UNQUANTISED | {"num_nextn_predict_layers": None}),
}
LATENT_ATTENTION = ("v3", "glm-5", "v3-unsaid")


def test_what_several_draft_layers_draft_is_refused_where_vllm_refuses_it(tmp_path: Path) -> None:
    asked = {
        f"{name} {tokens} {pcp}": (str(tmp_path / name), tokens, pcp)
        for name in SEVERAL
        for tokens in range(1, 8)
        for pcp in ((1, 2) if name in LATENT_ATTENTION else (1,))
    }
    for name, case in SEVERAL.items():
        case.write(tmp_path / name)
    refused = answers_of(SERVED, asked)
    for name, (directory, tokens, pcp) in asked.items():
        if refused[name] is None:
            require_drafts(directory, tokens, pcp)
            continue
        with pytest.raises((ConfigError, PlanError), match=f"^--mtp {tokens}: "):
            require_drafts(directory, tokens, pcp)
    assert 0 < sum(text is not None for text in refused.values()) < len(refused)


def require_drafts(directory: str, tokens: int, pcp: int) -> None:
    drafts = drafting(load_model(directory), tokens)
    drafts.model.require_split(Deployment(ParallelLayout(pcp=pcp)))
