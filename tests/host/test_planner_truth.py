"""The planner's linears and bytes equal those of vLLM's own model class, to the byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_layershard.models import Deployment, load_model
from vllm_layershard.plan import ParallelLayout

CONFIGS = Path(__file__).parents[2] / "vllm_layershard" / "models" / "configs"
SMALL = {
    "num_hidden_layers": 5,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "n_routed_experts": 9,
    "num_experts_per_tok": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
UNQUANTISED_PARTS = [
    "model.layers.0.self_attn.q_a_proj",
    "model.layers.0.self_attn.kv_a_proj_with_mqa",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.2.mlp.experts.0.gate_proj",
    "model.layers.3.mlp.shared_experts.down_proj",
]

CASES = {
    "v3-bf16": ("deepseek-ai--DeepSeek-V3", {"quantization_config": None}, (1, 1, False)),
    "v3-bf16-tp2": ("deepseek-ai--DeepSeek-V3", {"quantization_config": None}, (2, 1, False)),
    "v3-bf16-dp2": ("deepseek-ai--DeepSeek-V3", {"quantization_config": None}, (1, 2, False)),
    "v3-fp8": ("deepseek-ai--DeepSeek-V3", {}, (1, 1, False)),
    "v3-fp8-tp2-dp2-ep": ("deepseek-ai--DeepSeek-V3", {}, (2, 2, True)),
    "v3-fp8-dp4": ("deepseek-ai--DeepSeek-V3", {}, (1, 4, False)),
    "v3-fp8-skipped": (
        "deepseek-ai--DeepSeek-V3",
        {"quantization_config": {**FP8, "modules_to_not_convert": UNQUANTISED_PARTS}},
        (1, 2, True),
    ),
    "v2-lite": ("deepseek-ai--DeepSeek-V2-Lite", {}, (1, 1, False)),
    "v2-lite-tp2-ep": ("deepseek-ai--DeepSeek-V2-Lite", {}, (2, 1, True)),
    "v3.2": ("deepseek-ai--DeepSeek-V3.2", {}, (1, 1, False)),
    "v3.2-tp2": ("deepseek-ai--DeepSeek-V3.2", {}, (2, 1, False)),
    "kimi-k2": ("moonshotai--Kimi-K2-Instruct", {}, (1, 8, True)),
    "glm-5": ("zai-org--GLM-5", {}, (1, 1, False)),
    "glm-5-fp8": ("zai-org--GLM-5-FP8", {}, (2, 1, True)),
    "glm-5-shared-indices": ("zai-org--GLM-5", {"index_topk_freq": 4}, (1, 1, False)),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory for each case."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for case, (source, changes, _) in CASES.items():
        config = json.loads((CONFIGS / f"{source}.json").read_text())
        config.pop("auto_map", None)
        config.pop("num_nextn_predict_layers", None)
        if config.get("q_lora_rank"):
            config["q_lora_rank"] = 128
        config |= SMALL | changes
        if config.get("quantization_config") is None:
            config.pop("quantization_config", None)
        found[case] = root / case
        found[case].mkdir()
        (found[case] / "config.json").write_text(json.dumps(config))
    return found


@pytest.fixture(scope="module")
def built_by_vllm(directories: dict[str, Path]) -> dict[str, dict[str, object]]:
    """What vLLM's own classes hold, case by case; one process builds them all."""
    pytest.importorskip("vllm")
    cases = [
        {"name": case, "directory": str(directories[case]), "tp": tp, "dp": dp, "ep": ep}
        for case, (_, _, (tp, dp, ep)) in CASES.items()
    ]
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_inventory.py"))],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_equal_to_vllm(
    case: str, directories: dict[str, Path], built_by_vllm: dict[str, dict[str, object]]
) -> None:
    truth = built_by_vllm[case]
    tp, dp, ep = CASES[case][2]
    model = load_model(str(directories[case]))
    deployment = Deployment(ParallelLayout(tp=tp, dp=dp), ep=ep)
    planned = {
        linear.prefix: {
            "prefix": linear.prefix,
            "tp_replicated": linear.tp_replicated,
            "tensors": sorted(
                [t.name, list(t.shape), t.dtype, list(t.stride)] for t in linear.tensors
            ),
        }
        for linear in model.linears(deployment)
    }
    assert planned == truth["linears"]
    held = model.weight_bytes(deployment, rank=0)
    assert held.total - held.derived == truth["total_bytes"]
    layers = range(model.num_layers)
    assert model.kv_bytes_per_token("auto", layers, deployment) == truth["kv_bytes_per_token"]
