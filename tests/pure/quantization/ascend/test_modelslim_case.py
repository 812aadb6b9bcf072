"""A ModelSlim checkpoint of GLM-5 in W8A8, as vllm-ascend serves it, and of others like it.

Which module has which precision: vllm-project/vllm-ascend, its tests of modelslim_config.py and its
guide to a description; attention is static, experts and their shared ones dynamic, `kv_b_proj`,
routers and what the indexer weighs with stay wide.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import ENDS
from sums import Matrix, total
from tests.pure.quantization.test_quantization import GPTQ, ONE, write
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.beside import DESCRIPTION, MAX_DESCRIPTION_BYTES
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

EIGHT = Deployment(ParallelLayout(dp=8), ep=True)
STATIC, DYNAMIC, FLOAT = "W8A8", "W8A8_DYNAMIC", "FLOAT"

Precision = Callable[[str], str]


def latent(name: str) -> str:
    """GLM-5's and DeepSeek's."""
    last = name.rpartition(".")[2]
    if "self_attn" in name:
        return FLOAT if last in ("kv_b_proj", "wk", "weights_proj") else STATIC
    return DYNAMIC if ".mlp." in name and last != "gate" else FLOAT


def grouped(name: str) -> str:
    """Qwen3-MoE's."""
    if "self_attn" in name:
        return STATIC
    return DYNAMIC if ".experts." in name else FLOAT


def hybrid(name: str) -> str:
    """Qwen3-Next's: of delta nets the first linear alone."""
    if "linear_attn" in name:
        return DYNAMIC if name.endswith("in_proj_qkvz") else FLOAT
    return DYNAMIC if ".experts." in name or "self_attn" in name else FLOAT


def held(matrix: Matrix, precision: str) -> float | None:
    """Bytes after loading: int8, scales and offsets, and vllm-ascend's copies of them.

    Source: vllm-ascend 182b75e, quantization/methods/w8a8_static.py and w8a8_dynamic.py.
    """
    rows, inner = matrix.rows, matrix.inner
    if precision == FLOAT:
        return None
    if precision == STATIC:
        return rows * inner + rows * (2 + 2 + 4 + 4) + 3 * 2 * inner + 3
    copied = ".experts." not in matrix.name or not matrix.name.endswith("down_proj")
    return rows * inner + rows * (2 + 2 + (4 if copied else 0))


CASES: dict[str, tuple[str, Precision, dict[str, Any]]] = {
    "GLM-5": ("zai-org--GLM-5", latent, {}),
    "GLM-5.1": ("zai-org--GLM-5.1", latent, {}),
    "DeepSeek-V3": ("deepseek-ai--DeepSeek-V3", latent, {"quantization_config": None}),
    "DeepSeek-V3.1": ("deepseek-ai--DeepSeek-V3.1", latent, {"quantization_config": None}),
    "DeepSeek-V3.2": ("deepseek-ai--DeepSeek-V3.2", latent, {"quantization_config": None}),
    "Kimi-K2": ("moonshotai--Kimi-K2-Instruct", latent, {"quantization_config": None}),
    "with its method": (
        "zai-org--GLM-5",
        latent,
        {"quantization_config": {"quant_method": "ascend", "model_quant_type": DYNAMIC}},
    ),
    "in capitals": ("zai-org--GLM-5", latent, {"quantization_config": {"quant_method": "ASCEND"}}),
    "Qwen3-235B": ("Qwen--Qwen3-235B-A22B", grouped, {}),
    "Qwen3-Coder": ("Qwen--Qwen3-Coder-480B-A35B-Instruct", grouped, {}),
    "Qwen3-Next": ("Qwen--Qwen3-Next-80B-A3B-Instruct", hybrid, {}),
}


def modules(config: dict[str, Any]) -> list[str]:
    """What a description names, experts by the first two; the draft layer and its head too."""
    part = ("gate_proj", "up_proj", "down_proj")
    experts = [f"mlp.experts.{i}.{p}" for i in (0, 1) for p in part]
    shared = [f"mlp.shared_experts.{p}" for p in part] + [f"mlp.shared_expert.{p}" for p in part]
    delta = [f"linear_attn.{p}" for p in ("in_proj_qkvz", "in_proj_ba", "out_proj")]
    names = ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj", "q_proj")
    attention = [f"self_attn.{name}" for name in (*names, "k_proj", "v_proj")]
    indexer = [f"self_attn.indexer.{name}" for name in ("wq_b", "wk", "weights_proj")]
    mlp = [f"mlp.{p}" for p in (*part, "gate", "shared_expert_gate")]
    every = (*attention, *indexer, *delta, *mlp, *shared, *experts)
    layers = config["num_hidden_layers"]
    within = [f"model.layers.{i}.{m}" for i in range(layers + 1) for m in every]
    return [*within, f"model.layers.{layers}.shared_head.head", *ENDS]


@pytest.mark.parametrize("case", CASES)
def test_a_described_checkpoint_has_the_bytes_of_its_matrices(case: str, tmp_path: Path) -> None:
    name, precision, changes = CASES[case]
    config = json.loads((_BUNDLED / f"{name}.json").read_text()) | changes
    description = {"version": "1.0.0", "model_quant_type": DYNAMIC, "group_size": 0} | {
        f"{module}.weight": precision(module) for module in modules(config)
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    model = read_model(str(tmp_path))
    assert model.quantization == "ascend_w8a8"

    def stored(matrix: Matrix) -> float | None:
        fused = matrix.name.replace("in_proj_qkv", "in_proj_qkvz").replace(
            "in_proj_z", "in_proj_qkvz"
        )
        return held(matrix, precision(fused.replace("qkvzz", "qkvz")))

    stated = {k: v for k, v in config.items() if k != "quantization_config"}
    if every := config.get("full_attention_interval"):
        kinds = ["linear_attention"] * (every - 1) + ["full_attention"]
        stated["layer_types"] = kinds * (config["num_hidden_layers"] // every)
    expected = total(stated, stored, ranks=8)
    assert model.weight_bytes(EIGHT, 0).total == pytest.approx(expected, rel=1e-3)


ENDS_PLAIN = {f"{module}.weight": FLOAT for module in ENDS}


def described(kinds: dict[str, str]) -> dict[str, str]:
    """The precision of every tensor of a one-layer Qwen3-MoE, as ModelSlim states it."""
    modules = {
        **{f"self_attn.{part}_proj": "W8A8" for part in "qkvo"},
        **{
            f"mlp.experts.{i}.{p}_proj": "W8A8_DYNAMIC"
            for i in range(2)
            for p in ("gate", "up", "down")
        },
        "mlp.gate": "FLOAT",
    } | kinds
    within = {f"model.layers.0.{module}.weight": kind for module, kind in modules.items()}
    return within | ENDS_PLAIN


FIRST_EXPERT = tuple(f"mlp.experts.0.{part}_proj" for part in ("gate", "up", "down"))


def ascend(directory: Path, description: bytes) -> str:
    (directory / DESCRIPTION).write_bytes(description)
    sizes = {"num_hidden_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    return write(directory, None, "Qwen--Qwen3-235B-A22B", **sizes)


def test_ascends_w8a8_is_read_from_its_description(tmp_path: Path) -> None:
    model = read_model(ascend(tmp_path, json.dumps({"version": "1.0"} | described({})).encode()))
    assert model.quantization == "ascend_w8a8"
    by_name = {linear.prefix: linear for linear in model.linears(ONE)}
    o_proj = {t.name: t for t in by_name["model.layers.0.self_attn.o_proj"].tensors}
    assert (o_proj["weight"].shape, o_proj["weight"].dtype) == ((4096, 8192), "int8")
    assert o_proj["deq_scale"].dtype == "float32"
    assert o_proj["aclnn_input_offset"].shape == (8192,)
    (gate,) = by_name["model.layers.0.mlp.gate"].tensors
    assert gate.dtype == "bfloat16"
    rows = 2 * 1536 + 4096
    experts = 2 * (3 * 1536 * 4096 + rows * (2 + 2) + 2 * 1536 * 4)
    assert model.weight_bytes(ONE, 0).experts == experts


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            described({"self_attn.o_proj": "W4A8"}),
            "o_proj: quant_model_description.json states W4A8",
        ),
        (
            described({"self_attn.k_proj": "FLOAT"}),
            "qkv_proj: quant_model_description.json states several",
        ),
        (
            ENDS_PLAIN,
            "states no precision for model.layers.0.mlp.experts.0.gate_proj",
        ),
        (
            described(dict.fromkeys(FIRST_EXPERT, "W8A8")),
            "vllm-ascend has no experts with precision W8A8",
        ),
        (
            described({"mlp.experts.0.up_proj": "FLOAT"}),
            "states several precisions for model.layers.0.mlp.experts.0.gate_proj, ",
        ),
    ],
)
def test_descriptions_that_do_not_fit(
    description: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = read_model(ascend(tmp_path, json.dumps(description).encode()))
    with pytest.raises(ModelError) as error:
        model.weight_bytes(ONE, 0)
    assert message in str(error.value)


READS = "vllm-ascend has a class for such {}, and the planner does not read it yet; supported are"
NONE = "vllm-ascend has no class for such {}; supported are FLOAT, W8A8 and W8A8_DYNAMIC"


@pytest.mark.parametrize(
    ("module", "kind", "said"),
    [
        *(
            ("self_attn.o_proj", kind, READS)
            for kind in ("W8A16", "W8A8_MIX", "W8A8_MXFP8", "W8A8FP8_DYNAMIC", "W4A8_MXFP")
        ),
        ("self_attn.o_proj", "W4A4_DYNAMIC", READS),
        ("self_attn.o_proj", "W4A8_DYNAMIC", NONE),  # of experts alone
        ("self_attn.o_proj", "W4A16", NONE),
        ("self_attn.o_proj", "w8a16", NONE),
        ("self_attn.o_proj", "NONSENSE", NONE),
        ("self_attn.o_proj", "W8A8SC", NONE),  # on the Atlas 300I, whose classes are others
        ("mlp.experts", "W4A8_DYNAMIC", READS),
        ("mlp.experts", "W4A16", READS),
        ("mlp.experts", "W8A8_MXFP8", READS),
        ("mlp.experts", "W8A16", NONE),
        ("mlp.experts", "NONSENSE", NONE),
    ],
)
def test_of_a_precision_it_is_said_whether_vllm_ascend_has_a_class(
    module: str, kind: str, said: str, tmp_path: Path
) -> None:
    stated = FIRST_EXPERT if module == "mlp.experts" else (module,)
    description = described(dict.fromkeys(stated, kind))
    model = read_model(ascend(tmp_path, json.dumps(description).encode()))
    with pytest.raises(ModelError) as error:
        model.weight_bytes(ONE, 0)
    modules = "experts" if "experts" in module else "linears"
    assert f"states {kind} for " in str(error.value)
    assert f": {said.format(modules)}" in str(error.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b"\xff", b'{"a": ' + b"[" * 50_000, b" " * (MAX_DESCRIPTION_BYTES + 1)],
)
def test_a_broken_description_is_one_message(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=DESCRIPTION):
        read_model(ascend(tmp_path, raw))


def test_a_description_beside_a_stated_method_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_bytes(b"broken")
    assert read_model(write(tmp_path, GPTQ)).quantization == "gptq_int4_g128"
