"""Hardware: bundled numbers, files of one's own, collective times, and what is not guessed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import Abstention, Estimate, forecast, profile, profile_names
from vllm_layershard.estimate.broadcast import broadcast_basis, broadcast_seconds
from vllm_layershard.estimate.capacity import cache_device_of
from vllm_layershard.estimate.figure import LABELS, Figure
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread, widest
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import Deployment, Operation, read_model, shard_model
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.planner.hardware import list_hardware

MIB = 1 << 20
ALL = """A100 H20 H20-141 H800 H100 H200 B200 B300 GB200 GB300 L40S RTX-PRO-6000 GB10
MI300X MI325X MI355X 910B1 910B2 910B3 910B4 910C 910C-board"""


def test_every_device_is_there_and_every_number_has_a_source() -> None:
    assert sorted(profile_names()) == sorted(ALL.split())
    for name in profile_names():
        device = profile(name)
        for key, figure in device.figures.items():
            if figure is not None:
                assert figure.basis in ("formula", "measured", "assumed"), (name, key)
                assert figure.source
        assert all(table.source for table in device.bus)


def test_a_full_mesh_scatters_and_gathers() -> None:
    """T = 2 alpha + (2 / p) S / b_link: eight 910B at 0.7 of 28 GB/s move 78 GB/s."""
    device = profile("910B3")
    alpha = 8.4e-6 + 8 * 3e-6
    seconds = broadcast_seconds(512 * MIB, widest([range(8)], 8), device)
    assert seconds == pytest.approx(2 * alpha + 2 / 8 * 512 * MIB / (0.7 * 28e9))
    assert 512 * MIB / seconds == pytest.approx(72e9, rel=0.1), "what others inferred"
    assert "full mesh" in broadcast_basis(widest([range(8)], 8), device)[1]
    further = broadcast_seconds(512 * MIB, widest([range(16)], 8), device) - seconds
    assert further == pytest.approx(8.4e-6 + 16 * 3e-6 + 512 * MIB / (8 * 0.7 * 25e9)), "RoCE"


def test_pcie_collapses_with_the_number_of_devices() -> None:
    device = profile("L40S")
    two, four, eight = (
        512 * MIB / broadcast_seconds(512 * MIB, widest([range(n)], 8), device) for n in (2, 4, 8)
    )
    assert (two, eight) == (pytest.approx(19.6e9, rel=0.01), pytest.approx(1.2e9, rel=0.01))
    assert four == pytest.approx((19.6e9 * 1.2e9) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "ranks", "lacks"),
    [
        ("MI300X", 8, ()),
        ("MI300X", 16, ("link between nodes (16 ranks on 2 nodes of 8)",)),
        ("L40S", 8, ()),
        ("L40S", 16, ("link between nodes (16 ranks on 2 nodes of 8)",)),
        ("910B4", 9, ("link between nodes (9 ranks on 2 nodes of 8)",)),
        ("H200", 64, ()),
    ],
)
def test_what_is_lacking(name: str, ranks: int, lacks: tuple[str, ...]) -> None:
    assert profile(name).lacking(widest([range(ranks)], 8)) == lacks


def test_groups_lie_on_the_nodes_that_their_ranks_lie_on() -> None:
    def spread(layout: ParallelLayout, tp_replicated: bool = False) -> Spread:
        return widest(layout.groups(tp_replicated), 8)

    assert spread(ParallelLayout(dp=8)) == widest([range(8)], 8) == Spread(8, 1, 8)
    assert spread(ParallelLayout(dp=16)) == widest([range(16)], 8) == Spread(16, 2, 8)
    assert spread(ParallelLayout(tp=8, dp=2)) == Spread(2, 2, 1)
    assert spread(ParallelLayout(tp=8, dp=2), tp_replicated=True) == Spread(16, 2, 8)
    assert spread(ParallelLayout(tp=2, dp=8)) == Spread(8, 2, 4)
    assert spread(ParallelLayout(dp=8, pp=2)) == Spread(8, 2, 4)
    assert spread(ParallelLayout(dp=2, pcp=4, pp=2)) == Spread(8, 2, 4)


@pytest.mark.parametrize("layout", [{"tp": 8, "dp": 2}, {"tp": 2, "dp": 8}, {"dp": 8, "pp": 2}])
def test_no_broadcast_is_faster_than_a_link_on_its_way(layout: dict[str, int]) -> None:
    device = profile("H200")
    assert device.inter_node is not None
    config = LayerShardConfig(layers=("o_proj",))
    deployment = Deployment(ParallelLayout(**layout), ep=True)
    sharding = shard_model(read_model("Kimi-K2-Instruct"), deployment, config)
    forward = forecast(sharding, device).phases[0].asked.forward
    series = sharding.groups[0].plan.series[0].series
    moved = len(series) * series.layer_bytes
    (spread,) = {widest(group.ranks, 8) for group in sharding.groups}
    assert forward.fetch > moved / (device.inter_node.value * spread.in_a_domain)
    lacking = forecast(sharding, profile("MI300X"))
    assert lacking.lacking, "beyond a node nothing is known of it"
    assert "calibrate" not in lacking.verdict, "it measures one machine"


def test_nothing_is_estimated_where_a_number_is_lacking() -> None:
    config = LayerShardConfig(layers=("o_proj",))
    deployment = Deployment(ParallelLayout(dp=16), ep=True)
    said = forecast(shard_model(read_model("DeepSeek-V3"), deployment, config), profile("MI300X"))
    assert said.verdict.startswith("no estimate: MI300X lacks link between nodes (16 ranks")
    assert isinstance(said, Abstention)
    assert list(said.batches) == ["prefill", "decode"]


def test_no_link_is_needed_where_nothing_moves() -> None:
    config = LayerShardConfig(layers=("o_proj",), placement="replicated")
    deployment = Deployment(ParallelLayout(dp=16), ep=True)
    sharding = shard_model(read_model("DeepSeek-V3"), deployment, config)
    device = replace(profile("MI300X"), intra_node=None)
    said = forecast(sharding, device)
    assert device.lacking(widest([range(1)], 8)) == ()
    assert isinstance(said, Estimate)
    assert said.verdict == "nothing moves: the placement is replicated"
    assert all(phase.asked.forward.exposed == 0 for phase in said.phases)


def written(tmp_path: Path, document: object) -> str:
    path = tmp_path / "mine.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_a_file_overrides_a_bundled_profile(tmp_path: Path) -> None:
    given = {
        "base": "h20",
        "inter_node": 25e9,
        "memory_bandwidth": {"value": 3.9e12, "basis": "measured", "source": "our copy test"},
        "low_bit": None,
        "broadcast": [{"ranks": 8, "sizes": [4 * MIB, 128 * MIB], "seconds": [9e-5, 4e-4]}],
    }
    device = profile(written(tmp_path, given))
    assert device.name == "mine"
    assert device.bf16 == profile("H20").bf16
    assert device.memory_bandwidth == Figure(3.9e12, "measured", "our copy test")
    assert device.inter_node is not None
    assert device.inter_node.basis == "assumed"
    assert "given in" in device.inter_node.source
    assert device.low_bit is None
    assert broadcast_seconds(128 * MIB, widest([range(8)], 8), device) == 4e-4
    assert broadcast_seconds(66 * MIB, widest([range(8)], 8), device) == pytest.approx(2.45e-4)
    assert broadcast_seconds(1, widest([range(8)], 8), device) == 9e-5
    assert broadcast_seconds(256 * MIB, widest([range(8)], 8), device) == 8e-4
    assert broadcast_seconds(128 * MIB, widest([range(4)], 8), device) == broadcast_seconds(
        128 * MIB, widest([range(4)], 8), profile("H20")
    )


def test_the_profile_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "planning.md").read_text()
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    device = profile(written(tmp_path, shown))
    assert device.name == "our H20"
    assert device.lacking(widest([range(8)], 8)) == ()


def test_a_file_alone_lacks_what_it_does_not_say(tmp_path: Path) -> None:
    table = {"ranks": 2, "sizes": [MIB], "seconds": [1e-3]}
    device = profile(written(tmp_path, {"bf16": 1e12, "broadcast": [table]}))
    assert device.lacking(widest([range(2)], 8)) == ("memory bandwidth",)
    assert device.lacking(widest([range(4)], 8)) == (
        "memory bandwidth",
        "broadcast time over 4 ranks (measured over 2)",
    )


BAD = {
    "no object": ([1], "a JSON object was expected"),
    "not JSON": ('{"a": ', "is not valid JSON"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "unknown key": ({"flops": 1}, '"flops": no such key; known are base, bf16'),
    "negative": ({"bf16": -1}, "bf16: -1 is not a number above 0 to 1e+18"),
    "next to nothing": ({"memory_bandwidth": 1e-300}, "memory_bandwidth: 1e-300 is below 1000"),
    "a slip of the unit": ({"bf16": 989}, "bf16: 989 is below 1e+06 FLOP/s: no device's"),
    "half a device": ({"node_size": 0.5}, "node_size: 0.5 is not a whole number of devices"),
    "half a NIC": ({"nics": 0.5}, "nics: 0.5 is not a whole number of NICs"),
    "half a device a node": ({"host_size": 2.5}, "host_size: 2.5 is not a whole number of devices"),
    "a slow peer": ({"peer_link": 56}, "peer_link: 56 is below 1000 bytes/s: no device's"),
    "no share": ({"link_efficiency": 1e-9}, "link_efficiency: 1e-09 is a share: from 0.001 to 1"),
    "a table at a standstill": (
        {"bus": [{"ranks": 2, "sizes": [1], "bandwidths": [1e-9]}]},
        "bus: bandwidths: 1e-09 is below 1000: no device's",
    ),
    "zero": ({"memory_bandwidth": 0}, "memory_bandwidth: 0 is not a number above 0"),
    "NaN": ('{"bf16": NaN}', "bf16: NaN is not a number"),
    "infinite": ('{"bf16": Infinity}', "bf16: Infinity is not a number"),
    "huge": ({"bf16": 10**400}, "bf16: 1000"),
    "boolean": ({"bf16": True}, "bf16: true is not a number"),
    "text": ({"bf16": "fast"}, 'bf16: "fast" is not a number'),
    "null": ({"latency": None}, "latency: null is not a number from 0"),
    "share": ({"link_efficiency": 1.5}, "link_efficiency: 1.5 is a share: from 0.001 to 1"),
    "basis": ({"bf16": {"value": 1e12, "basis": "sure"}}, 'bf16: basis "sure" is not one of exact'),
    "format": ({"low_bit_format": "fp4"}, 'low_bit_format: "fp4" is not fp8 or int8'),
    "topology as a list": ({"topology": ["ring"]}, 'topology: ["ring"] is not ring or mesh'),
    "object": ({"bf16": {"basis": "exact"}}, "bf16: an object has value, basis and source"),
    "unit": ({"bf16": {"value": 1e12, "unit": "TFLOP/s"}}, 'bf16: unit "TFLOP/s" is not "FLOP/s"'),
    "figures as a list": ({"figures": []}, "figures: a JSON object was expected"),
    "no figure": ({"figures": {"name": 1}}, 'figures: "name": no such figure'),
    "twice": ({"bf16": 1e12, "figures": {"bf16": 1e12}}, '"bf16": stands twice'),
    "all devices": ({"hardware": [{}, {}]}, "hardware: a list of 2 devices; give one of them"),
    "beside the device": ({"hardware": {}, "bf16": 1e12}, '"bf16": no key beside hardware'),
    "base": ({"base": "H21"}, 'base: "H21" is no bundled profile; those are A100'),
    "name": ({"name": "a\x1b[31mb"}, "name: "),
    "topology": ({"topology": "star"}, 'topology: "star" is not ring or mesh'),
    "bus": ({"bus": 3}, "bus: a list of tables was expected"),
    "table": ({"bus": [{"ranks": 8}]}, "bus: a table has ranks, sizes, bandwidths"),
    "lengths": (
        {"bus": [{"ranks": 8, "sizes": [1, 2], "bandwidths": [1]}]},
        "bus: 2 sizes, but 1 bandwidths",
    ),
    "order": (
        {"broadcast": [{"ranks": 8, "sizes": [2, 1], "seconds": [1, 1]}]},
        "broadcast: sizes must ascend",
    ),
    "one rank": (
        {"broadcast": [{"ranks": 1, "sizes": [2], "seconds": [1]}]},
        "broadcast: ranks (from 2)",
    ),
    "no time": (
        {"broadcast": [{"ranks": 2, "sizes": [2], "seconds": [0]}]},
        "broadcast: seconds: 0 is not a number above 0",
    ),
    "empty table": (
        {"broadcast": [{"ranks": 2, "sizes": [], "seconds": []}]},
        "broadcast: sizes: 1 to 256 numbers were expected",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_bad_files_end_in_one_message(case: str, tmp_path: Path) -> None:
    document, expected = BAD[case]
    path = written(tmp_path, document)
    with pytest.raises(HardwareError) as error:
        profile(path)
    assert str(error.value).startswith(f"--hardware {path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, expected in {
        tmp_path / "none.json": "No such file",
        tmp_path: "is a directory, not a regular file",
        Path("/dev/zero"): "is a device, not a regular file",
    }.items():
        with pytest.raises(HardwareError, match=expected):
            profile(str(path))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardwareError, match="is not UTF-8 text"):
        profile(str(binary))
    with pytest.raises(HardwareError, match="cannot be read"):
        profile("a\x00b.json")


def test_the_memory_traffic_of_a_movement_comes_out_of_the_peak() -> None:
    """Of 800 bytes per second that are left the compute reaches as large a share as of 1000."""
    rate = Figure(1000, "assumed", "test")
    memory_bound = Operation("", flops=1, moved_bytes=100, precision="bf16")
    for reached in (0.1, 0.6, 1):
        share = Figure(reached, "assumed", "test")
        device = replace(profile("H20"), bf16=rate, memory_bandwidth=rate, memory_efficiency=share)
        assert Roofline(device, 100).slowdown(memory_bound) == pytest.approx(0.25)
        assert Roofline(device, pull_traffic=200).slowdown(memory_bound) == pytest.approx(0.25)


def test_a_broadcast_takes_memory_traffic_from_what_is_bound_by_memory() -> None:
    """Twice 100 of 1000 bytes per second are gone: 1000 / 800. Products lose what is stated."""
    device = replace(
        profile("H20"),
        bf16=Figure(1000, "assumed", "test"),
        memory_bandwidth=Figure(1000, "assumed", "test"),
        compute_efficiency=Figure(1, "assumed", "test"),
        memory_efficiency=Figure(1, "assumed", "test"),
    )
    roofline = Roofline(device, broadcast_rate=100)
    memory_bound = Operation("", flops=1, moved_bytes=100, precision="bf16")
    product_bound = Operation("", flops=100, moved_bytes=1, precision="bf16")
    balanced = Operation("", flops=100, moved_bytes=100, precision="bf16")
    assert roofline.slowdown(memory_bound) == pytest.approx(0.25)
    assert roofline.slowdown(product_bound) == pytest.approx(0.35)
    assert roofline.slowdown(balanced) == pytest.approx(0.35)
    assert Roofline(device).slowdown(memory_bound) == 0.0
    assert Roofline(device, 1e9).slowdown(memory_bound) == pytest.approx(1.0), "half is left"


OTHER_VALUES = {
    **dict.fromkeys(LABELS, 2e9),
    **dict.fromkeys(("node_size", "host_size", "nics"), 3),
    **dict.fromkeys(
        ("compute_efficiency", "memory_efficiency", "link_efficiency", "nic_efficiency"), 0.123
    ),
    "name": "another",
    "base": "H100",
    "topology": "mesh",
    "low_bit_format": "int8",
    "bus": [{"ranks": 2, "sizes": [MIB], "bandwidths": [1e9]}],
    "broadcast": [{"ranks": 2, "sizes": [MIB], "seconds": [1e-3]}],
}


@pytest.mark.parametrize("key", Hardware.__slots__)
def test_a_key_that_is_known_is_read(key: str, tmp_path: Path) -> None:
    read = profile(written(tmp_path, {"base": "H200", key: OTHER_VALUES[key]}))
    assert getattr(read, key) != getattr(profile("H200"), key)


def test_every_figure_has_a_name() -> None:
    others = {"name", "base", "topology", "low_bit_format", "bus", "broadcast"}
    assert set(LABELS) | others == set(Hardware.__slots__)


@pytest.mark.parametrize(("base", "tokens"), [("A100", 2048), ("H100", 8192), ("H200", 8192)])
def test_a_profile_of_ones_own_has_the_steps_of_its_base(
    base: str, tokens: int, tmp_path: Path
) -> None:
    ours = written(tmp_path, {"name": "pool 7", "base": base, "inter_node": 25e9})
    assert cache_device_of(profile(ours)).step_tokens == tokens
    printed = tmp_path / "printed.json"
    printed.write_text(json.dumps(list_hardware(ours).document()))
    assert cache_device_of(profile(str(printed))).step_tokens == tokens
