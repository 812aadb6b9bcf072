"""Ascend: the description that ModelSlim writes beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pure.quantization.test_quantization import GPTQ, ONE, write
from vllm_layershard.errors import ModelError
from vllm_layershard.models import read_model
from vllm_layershard.models.sources.beside import DESCRIPTION, MAX_DESCRIPTION_BYTES


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
    return {f"model.layers.0.{module}.weight": kind for module, kind in modules.items()}


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
            {},
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
