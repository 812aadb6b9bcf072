"""What vllm-ascend holds of a model that vLLM holds otherwise, against sums by hand.

Source: vllm-ascend 182b75e, quantization/methods/ and attention/, of which each test says the file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sums import Matrix, total
from tests.pure.quantization.ascend.test_methods import compressed, write
from tests.pure.quantization.ascend.test_modelslim_case import DYNAMIC, Precision, latent, modules
from vllm_layershard import HardwareError, Layout, plan_model
from vllm_layershard.models import Deployment
from vllm_layershard.models.cache.kv_cache import CacheDevice
from vllm_layershard.models.quantization import stated_section
from vllm_layershard.models.quantization.methods.compressed_ascend import read_on_ascend
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.planner.loaded_model import load_model

DENSE_MLA, SPARSE_MLA = "deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-V3.2"
GROUPED, LARGE = "Qwen--Qwen3-235B-A22B", "Qwen--Qwen3-Coder-480B-A35B-Instruct"
UNREAD = ["re:.*kv_b_proj", "re:.*indexer.*"]


def weights(model: str, hardware: str = "910C", mtp: int | None = None) -> int:
    layout = Layout(dp=16, ep=True)
    found = plan_model(model, layout=layout, hardware=hardware, layers="o_proj", mtp=mtp)
    return found.planned.weight_bytes[0].total


def of_a_950(path: str) -> int:
    """Without the refusal of the devices that the planner knows."""
    found = load_model(path)
    section = stated_section(found.found.config, found.found.beside)
    assert section is not None
    read = read_on_ascend(section, found.architecture)
    blueprint = replace(found.model.blueprint, quantization=read)
    model = found.model._replace(blueprint=blueprint, cache_device=CacheDevice(None))
    return model.weight_bytes(Deployment(ParallelLayout(dp=16), ep=True), 0).total


def config_of(name: str) -> dict[str, Any]:
    stated = json.loads((_BUNDLED / f"{name}.json").read_text())
    return {key: value for key, value in stated.items() if key != "quantization_config"}


def described(place: Path, name: str, precision: Precision = latent) -> str:
    """A ModelSlim checkpoint."""
    config = config_of(name)
    kinds = {f"{module}.weight": precision(module) for module in modules(config)}
    (place / "config.json").write_text(json.dumps(config))
    (place / DESCRIPTION).write_text(json.dumps({"model_quant_type": DYNAMIC} | kinds))
    return str(place)


def test_offsets_of_int4_experts_are_as_large_as_their_scales() -> None:
    """Source: methods/w4a16.py; 60 layers of 24 experts on a rank, a scale for 32 of a row.

    The shapes before packing, two a layer, have four bytes an element, not two.
    """
    matrices = 60 * 24 * 3 * 7_168 * 2_048
    shapes = 60 * 24 * 2 * 2 * 2
    kept = absorbed(layers=61, heads=64)
    assert weights("Kimi-K2.5") - weights("Kimi-K2.5", "H200") == (
        matrices // 32 * 2 + shapes + kept
    )
    assert matrices // 32 * 2 == 3_963_617_280


def absorbed(layers: int, heads: int) -> int:
    """W_UK and W_UV: the rows of `kv_b_proj` by the latent's 512, in two bytes."""
    return layers * heads * (128 + 128) * 512 * 2


@pytest.mark.parametrize(("mtp", "layers"), [(None, 61), (1, 62)])
def test_dense_mla_keeps_copies_of_what_vllm_views(
    mtp: int | None, layers: int, tmp_path: Path
) -> None:
    """Source: attention/mla_v1.py, `process_weights_after_loading`: `contiguous` of transposes."""
    path = described(tmp_path, DENSE_MLA)
    (tmp_path / "plain.json").write_text(json.dumps(config_of(DENSE_MLA)))
    plain = str(tmp_path / "plain.json")
    more = weights(plain, mtp=mtp) - weights(plain, "H200", mtp=mtp)
    assert more == absorbed(layers, heads=128)
    assert weights(path) == pytest.approx(slim(DENSE_MLA) + absorbed(61, 128), rel=1e-6)


def test_sparse_mla_frees_what_it_copies(tmp_path: Path) -> None:
    """Source: attention/sfa_v1.py, `process_weights_after_loading`: `dispose_layer`."""
    (tmp_path / "plain.json").write_text(json.dumps(config_of(SPARSE_MLA)))
    plain = str(tmp_path / "plain.json")
    assert weights(plain) == weights(plain, "H200")


def slim(name: str) -> float:
    """Of a ModelSlim checkpoint with static attention and dynamic experts, on a rank of 16."""

    def held(matrix: Matrix) -> float | None:
        if (precision := latent(matrix.name)) == "FLOAT":
            return None
        return static(matrix) if precision == "W8A8" else dynamic(matrix)

    return total(config_of(name), held, ranks=16)


def static(matrix: Matrix, scale: int = 4) -> float:
    """`scale`: bytes of a scale of the product, which a checkpoint of ModelSlim's has in float32.

    Beside it a row has a scale and an offset in two bytes and a bias in four, a column three values
    in two bytes, and a part of the linear a scale and an offset of its input.
    """
    of_rows = matrix.rows * (2 + 2 + 4 + scale)
    first = not matrix.name.endswith(("kv_a_proj_with_mqa", "k_proj", "v_proj", "up_proj"))
    of_inputs = 3 * 2 * matrix.inner + 2 + 1 if first else 0  # once for a fused linear
    return matrix.rows * matrix.inner + of_rows + of_inputs


def dynamic(matrix: Matrix) -> float:
    """A scale and an offset in two bytes, and the scale in float32 but for experts' `down_proj`."""
    down = ".experts." in matrix.name and matrix.name.endswith("down_proj")
    return matrix.rows * matrix.inner + matrix.rows * (4 if down else 8)


def float8(matrix: Matrix) -> float:
    """A scale in float32 and an offset in two bytes."""
    return matrix.rows * matrix.inner + matrix.rows * 6


def wide(name: str) -> bool:
    return name.endswith(("lm_head", ".gate", "kv_b_proj")) or ".indexer." in name


FORMS = {"W8A8_DYNAMIC": dynamic, "W8A8FP8_DYNAMIC": float8}


@pytest.mark.parametrize("name", [GROUPED, DENSE_MLA, SPARSE_MLA, LARGE])
@pytest.mark.parametrize("pair", FORMS)
def test_eight_bit_weights_of_compressed_tensors(pair: str, name: str, tmp_path: Path) -> None:
    """Source: methods/w8a8_dynamic.py and w8a8fp8_dynamic.py."""
    path = write(tmp_path, name, compressed(pair, UNREAD))
    expected = total(config_of(name), lambda m: None if wide(m.name) else FORMS[pair](m), ranks=16)
    kept = absorbed(61, 128) if name == DENSE_MLA else 0
    held = of_a_950(path) if pair == "W8A8FP8_DYNAMIC" else weights(path)
    assert held == pytest.approx(expected + kept, rel=1e-6)


def test_static_integers_of_compressed_tensors(tmp_path: Path) -> None:
    """Source: methods/w8a8_static.py: the scale of a product is of two scales in two bytes."""
    path = write(tmp_path, GROUPED, compressed("W8A8", ["re:.*experts.*"]))

    def held(matrix: Matrix) -> float | None:
        quantised = "self_attn" in matrix.name
        return static(matrix, scale=2) if quantised else None

    expected = total(config_of(GROUPED), held, ranks=16)
    assert weights(path) == pytest.approx(expected, rel=1e-6)


def test_mlapo_copies_static_queries_of_compressed_tensors_too(tmp_path: Path) -> None:
    """Source: attention/sfa_v1.py, `_resolve_preprocess_type`, which asks for the class alone."""
    ignored = [*UNREAD, "re:.*mlp.*"]
    path = write(tmp_path, SPARSE_MLA, compressed("W8A8", ignored))
    found = plan_model(path, layout=Layout(dp=16, ep=True), hardware="910C", layers="o_proj")
    copied = 61 * (24_576 * (1_536 + 2 + 4) + 2_112 * (7_168 + 2 + 4))
    assert found.planned.weight_bytes[0].derived == copied
    assert sum(f"{copied:,} bytes, which are counted" in note for note in found.warnings) == 1


@pytest.mark.parametrize("name", [DENSE_MLA, SPARSE_MLA])
def test_a_quantised_projection_that_mla_absorbs_is_refused(name: str, tmp_path: Path) -> None:
    """Source: attention/mla_v1.py and sfa_v1.py, `process_weights_after_loading`: they assert."""
    said = (
        r"--hardware 910C: model\.layers\.0\.self_attn\.kv_b_proj: vllm-ascend 182b75e takes no "
        "quantised kv_b_proj; give a W8A8 checkpoint"
    )
    path = write(tmp_path, name, compressed("W8A8_DYNAMIC", ["re:.*indexer.*"]))
    with pytest.raises(HardwareError, match=said):
        weights(path)
    (tmp_path / "config.json").unlink()

    def all_static(module: str) -> str:
        return "W8A8" if module.endswith("kv_b_proj") else latent(module)

    with pytest.raises(HardwareError, match=said):
        weights(described(tmp_path, name, all_static))
