"""The bundled devices: memory as a server sees it, names, and numbers that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from console import document
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import Hardware, profile, profile_names
from vllm_layershard.estimate.figure import LABELS, MAY_BE_NULL, Figure
from vllm_layershard.estimate.hardware import BusTable, TimeTable

GIB = 1 << 30

SEEN = {
    "A100": 79.32,
    "H20": 95.6,
    "H100": 79.11,
    "H800": 79.11,
    "H200": 139.72,
    "H20-141": 139.72,
    "B200": 178.35,
    "B300": 267.69,
    "GB200": 184.31,
    "GB300": 276.50,
    "L40S": 44.40,
    "RTX-PRO-6000": 95.01,
    "GB10": 121.69,
    "MI300X": 192,
    "MI325X": 255.98,
    "MI355X": 287.98,
    "910B1": 60.96,
    "910B2": 60.96,
    "910B3": 60.96,
    "910B4": 29.49,
    "910C": 61.27,
    "910C-board": 122.54,
}
"""GiB as public logs print them: torch's total. 95.6 is what nvidia-smi says of an H20."""


def test_memory_is_what_a_server_sees() -> None:
    assert set(SEEN) == set(profile_names())
    for name, gib in SEEN.items():
        memory = profile(name).memory_bytes
        assert memory is not None
        assert memory.value / GIB == pytest.approx(gib, rel=0.01), name
        assert memory.source


def test_qwen3_coder_fits_eight_h200_only_sharded() -> None:
    """0.92 of 139.72 GiB are 128.5: between the 131.5 of a rank and its 124.2 when sharded."""
    model = "Qwen3-Coder-480B-A35B-Instruct"
    plan = document("plan", "--model", model, "--dp", "8", "--ep", "--hardware", "H200")
    assert plan["memory"]["fits"]
    assert not plan["memory"]["fits_without_sharding"]
    assert any("exceed the 128.5 GiB" in warning for warning in plan["warnings"])
    assert plan["launch"]


PRINTED = {
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "nvidia h100 80gb hbm3": "H100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA H20": "H20",
    "NVIDIA H20-3e": "H20-141",
    "NVIDIA H800": "H800",
    "NVIDIA B200": "B200",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB200": "GB200",
    "NVIDIA GB300": "GB300",
    "NVIDIA L40S": "L40S",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "RTX PRO 6000": "RTX-PRO-6000",
    "NVIDIA GB10": "GB10",
    "NVIDIA DGX Spark": "GB10",
    "DGX Spark": "GB10",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI325X OAM": "MI325X",
    "910B3": "910B3",
    "Ascend910B3": "910B3",
    "Ascend 910B2": "910B2",
    "Ascend910": "910C",
    "Ascend910_9392": "910C",
    "ascend910_9391": "910C",
    "910C-die": "910C",
    " h200 ": "H200",
}


@pytest.mark.parametrize(("printed", "name"), PRINTED.items(), ids=PRINTED)
def test_a_name_as_a_tool_prints_it_finds_its_profile(
    printed: str, name: str, tmp_path: Path
) -> None:
    assert profile(printed) == profile(name)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": printed}))
    assert profile(str(path)).memory_bytes == profile(name).memory_bytes


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200 NVL", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX-PRO-6000"),
        ("H21", "H20"),
        ("MI308X", "MI300X"),
        ("L40", "L40S"),
        ("Ascend910_9382", "910C"),
        ("910B4-1", "910B4"),
        ("NVIDIA GH200 480GB", "H100"),
        ("NVIDIA GB100", "B200"),
        ("NVIDIA GH200 144G HBM3e", "H200"),
        ("NVIDIA B100", "B200"),
        ("NVIDIA GeForce RTX 5090", "RTX-PRO-6000"),
        ("RTX 5080", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 5000 Blackwell", "RTX-PRO-6000"),
        ("NVIDIA GeForce RTX 4090", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "L40S"),
        ("NVIDIA L20", "L40S"),
        ("NVIDIA L4", "L40S"),
        ("NVIDIA GeForce RTX 3090", "A100"),
        ("NVIDIA RTX A6000", "A100"),
        ("NVIDIA A10G", "A100"),
        ("NVIDIA A800-SXM4-80GB", "A100"),
        ("AMD Instinct MI350X", "MI355X"),
        ("AMD Instinct MI300A", "MI300X"),
        ("NVIDIA RTX 5880 Ada Generation", "L40S"),
        ("NVIDIA RTX 5000 Ada Generation", "L40S"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "L40S"),
        ("Ascend910B", "910B1"),
        ("Ascend910_9362", "910C"),
        ("H200 141GB", "H200"),
        ("MI300", "MI300X"),
    ],
)
def test_of_an_unknown_name_the_nearest_is_named_and_not_taken(name: str, nearest: str) -> None:
    with pytest.raises(HardwareError) as error:
        profile(name)
    assert f"its numbers are not guessed; nearest: {nearest}; known are A100, " in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "XYZ", "TPU v5e", "Gaudi 3", "x" * 300, "?"])
def test_of_a_name_that_is_like_none_no_profile_is_called_near(name: str) -> None:
    with pytest.raises(HardwareError) as error:
        profile(name)
    assert "nearest" not in str(error.value)
    assert "its numbers are not guessed; known are A100, " in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA R100", "VR200", "V100", "Tesla V100-SXM2-32GB", "B400"),
        *("AMD Instinct MI250X", "MI210", "AMD Instinct MI450X", "Quadro RTX 5000", "RTX 6000"),
        *("Ascend910A", "Ascend910ProB", "Ascend910PremiumA", "Ascend910_9579", "Ascend 310P3"),
    ],
)
def test_a_device_of_another_generation_is_not_near(name: str) -> None:
    with pytest.raises(HardwareError) as error:
        profile(name)
    assert "nearest" not in str(error.value)


@pytest.mark.parametrize("blackwell", ["", "Blackwell "])
@pytest.mark.parametrize("edition", ["Server Edition", "Workstation Edition"])
@pytest.mark.parametrize("vendor", ["", "NVIDIA "])
def test_each_edition_that_nvidia_smi_prints_finds_its_profile(
    vendor: str, blackwell: str, edition: str
) -> None:
    assert profile(f"{vendor}RTX PRO 6000 {blackwell}{edition}").name == "RTX-PRO-6000"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": "ours"},
        {"figures": {}},
        {"name": "ours", "topology": "mesh", "low_bit_format": "int8"},
        {"memory_bytes": None},
        {"bus": []},
        {"hardware": {}},
    ],
    ids=str,
)
def test_a_file_without_a_number_is_no_profile(document: dict, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))
    with pytest.raises(HardwareError, match="states no number of a device; give a base"):
        profile(str(path))


@pytest.mark.parametrize("key", LABELS)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "fast", None])
def test_a_number_that_cannot_be_is_refused_however_a_device_is_made(
    key: str, value: object
) -> None:
    """As `replace` makes it, and `Figure._replace`: a latency of -1 got a confident verdict."""
    h200 = profile("H200")
    figure = Figure(value, "assumed", "test")  # type: ignore[arg-type]
    for made in (
        lambda: replace(h200, **{key: figure}),
        lambda: Hardware("mine", **{key: figure}),
        lambda: replace(h200, **{key: (h200.figures[key] or figure)._replace(value=value)}),
    ):
        with pytest.raises(HardwareError, match=f"^Hardware (H200|mine): {key}: "):
            made()


@pytest.mark.parametrize("key", LABELS)
def test_what_may_be_unknown_is_none_and_nothing_else_is(key: str) -> None:
    if key in MAY_BE_NULL:
        assert getattr(replace(profile("H200"), **{key: None}), key) is None
        return
    with pytest.raises(HardwareError, match=f"{key}: null is no Figure"):
        replace(profile("H200"), **{key: None})


def test_other_fields_are_checked_too() -> None:
    with pytest.raises(HardwareError, match='H200: topology: "star" is not ring or mesh'):
        replace(profile("H200"), topology="star")  # type: ignore[arg-type]
    with pytest.raises(HardwareError, match='H200: low_bit_format: "fp4" is not fp8 or int8'):
        replace(profile("H200"), low_bit_format="fp4")  # type: ignore[arg-type]
    with pytest.raises(HardwareError, match=r"H200: bf16: 1.0 is no Figure"):
        replace(profile("H200"), bf16=1.0)  # type: ignore[arg-type]
    with pytest.raises(HardwareError, match=r"H200: nics: 0.5 is not a whole number of NICs"):
        replace(profile("H200"), nics=Figure(0.5, "assumed", "test"))


@pytest.mark.parametrize(
    ("ranks", "sizes", "values"),
    [
        (8, (), ()),
        (8, (1, 2), (1.0,)),
        (8, (2, 1), (1.0, 1.0)),
        (8, (0, 1), (1.0, 1.0)),
        (8, (1, 2), (0.0, 1.0)),
        (8, (1, 2), (1.0, float("nan"))),
        (1, (1, 2), (1.0, 1.0)),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    ranks: int, sizes: tuple[int, ...], values: tuple[float, ...]
) -> None:
    h200 = profile("H200")
    assert replace(h200, bus=(BusTable(8, (1, 2), (1.0, 1.0), "assumed", "test"),))
    with pytest.raises(HardwareError, match="is no table"):
        replace(h200, bus=(BusTable(ranks, sizes, values, "assumed", "test"),))
    with pytest.raises(HardwareError, match="is no table"):
        replace(h200, broadcast=(TimeTable(ranks, sizes, values, "assumed", "test"),))


def test_a_board_of_two_dies_says_where_ranks_run() -> None:
    flags = ["--model", "DeepSeek-V3.2", "--dp", "8", "--ep", "--tokens", "16K", "--hardware"]
    board = document("plan", *flags, "910C-board")["warnings"]
    assert any("a server runs a rank on each of them" in warning for warning in board)
    die = document("plan", *flags, "910C")["warnings"]
    assert not any("runs a rank on each" in warning for warning in die)
    for key in ("memory_bytes", "memory_bandwidth", "bf16", "low_bit", "intra_node"):
        of_board, of_die = profile("910C-board").figures[key], profile("910C").figures[key]
        assert of_board is not None
        assert of_die is not None
        assert of_board.value == pytest.approx(2 * of_die.value)
