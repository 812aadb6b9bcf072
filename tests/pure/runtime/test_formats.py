"""What a series cannot move is refused where it takes it: formats, gaps, tensors kept elsewhere."""

from __future__ import annotations

import sys
from threading import Timer

import pytest
import torch
from torch._subclasses import FakeTensorMode

from npu import FRACTAL_NZ, cast, stand_in
from vllm_layershard.errors import HostError
from vllm_layershard.plan import Series, SeriesPlan, build_plan
from vllm_layershard.runtime.device import CpuDevice, Device
from vllm_layershard.runtime.formats import is_dense
from vllm_layershard.runtime.former import Former
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.tensors import flat
from vllm_layershard.runtime.transport import transport_of

CPU = torch.device("cpu")
LAYERS = 3


@pytest.fixture
def npu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", None)  # put back afterwards
    return stand_in(CPU)


def plan_of(placement: str) -> SeriesPlan:
    series = [Series("o_proj", tuple(range(LAYERS)), 64)]
    return build_plan(series, 2, 1, placement).series[0]


def series_on(device: Device, placement: str = "round_robin", name: str = "broadcast"):
    plan = plan_of(placement)
    group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
    return LoadingSeries(plan, group, device, transport_of(plan, group, device, name))


def linear(number: int | None = None) -> torch.nn.Linear:
    made = torch.nn.Linear(4, 4, bias=False)
    if number is not None:
        cast(made.weight, number)
    return made


@pytest.mark.parametrize(
    ("number", "named"), [(29, r"FRACTAL_NZ \(29\)"), (4, "FRACTAL_Z"), (-1, r"unknown \(-1\)")]
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_padded_format_is_refused_by_name_and_plain_rows_are_taken(npu, number, named, position):
    refusal = rf"layer {position} of series 'o_proj': its tensor 'weight' .*{named}.*weight_nz_mode"
    with pytest.raises(HostError, match=refusal):
        series_on(npu).adopt(position, linear(number), ("weight",))
    for plain in (0, 2, 30):
        series_on(npu).adopt(position, linear(plain), ("weight",))


@pytest.mark.parametrize(
    ("placement", "transport"),
    [("round_robin", "broadcast"), ("round_robin", "pull"), ("striped", "pull")],
)
def test_no_transport_and_no_placement_takes_them(npu, placement, transport):
    with pytest.raises(HostError, match="FRACTAL_NZ"):
        series_on(npu, placement, transport).adopt(0, linear(FRACTAL_NZ), ("weight",))


def test_what_stays_where_it_is_may_have_any_format(npu):
    series_on(npu, "replicated").adopt(0, linear(FRACTAL_NZ), ("weight",))


def test_a_view_of_padded_memory_is_refused(npu):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(cast(torch.randn(4, 8), FRACTAL_NZ).t())
    with pytest.raises(HostError, match="FRACTAL_NZ"):
        series_on(npu).adopt(0, module, ("weight",))


def test_the_cpu_knows_no_format_of_its_own():
    assert CpuDevice(CPU).private_format(cast(torch.zeros(4), FRACTAL_NZ)) is None


def test_a_reload_that_brings_them_is_refused_and_the_old_ones_stay(npu):
    loading = series_on(npu)
    modules = [linear() for _ in range(LAYERS)]
    for position, module in enumerate(modules):
        loading.adopt(position, module, ("weight",))
    series = loading.finish(plan_of("round_robin"))
    served = series.weights(0)["weight"].clone()
    with pytest.raises(HostError, match=r"layer 0 of series 'o_proj'.*FRACTAL_NZ"):
        series.reload(0, linear(FRACTAL_NZ))
    assert torch.equal(series.weights(0)["weight"], served)


def gappy() -> torch.nn.Module:
    """As vLLM pads some weights: rows of eight columns, of which six are the weight's."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(4, 8)[:, :6])
    return module


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_rows_with_gaps_are_refused_where_they_would_move(placement):
    device = CpuDevice(CPU)
    refusal = r"layer 0 of series 'o_proj': its tensor 'weight' has gaps .*stride \(8, 1\)"
    with pytest.raises(HostError, match=refusal):
        series_on(device, placement, "pull").adopt(0, gappy(), ("weight",))
    series_on(device, "replicated").adopt(0, gappy(), ("weight",))


def test_rows_with_gaps_are_refused_before_their_loader_sends_them():
    """A quant method may make them dense: what is sent before would be other bytes."""
    refusal = r"layer 0 of series 'o_proj': its tensor 'weight' has gaps .*stride \(8, 1\)"
    with pytest.raises(HostError, match=refusal):
        series_on(CpuDevice(CPU)).receive(0, gappy())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.int16,
        torch.float8_e4m3fn,
        torch.float8_e8m0fnu,
        torch.float4_e2m1fn_x2,
    ],
)
def test_a_collective_is_given_bytes_of_whatever_dtype(dtype, device):
    """NCCL knows neither scales that are exponents, nor pairs of four bits, nor int16.

    Torch's fake tensors stand for those of a GPU.
    """
    with FakeTensorMode():
        weight = torch.empty_strided((4, 6), (1, 4), dtype=dtype, device=device)
        sent = flat(weight)
        assert (sent.dtype, sent.device.type) == (torch.uint8, device)
        assert sent.shape == (24 * weight.element_size(),)
        assert sent.is_contiguous()


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(4, 6), True),
        (torch.zeros(4, 6).t(), True),
        (torch.zeros(2, 3, 4).permute(2, 0, 1), True),
        (torch.zeros(4, 1, 6)[:, :, :], True),
        (torch.zeros(4, 8)[:1], True),
        (torch.zeros(()), True),
        (torch.zeros(0, 6), True),
        (torch.zeros(4, 8)[:, :6], False),
        (torch.zeros(4, 8)[::2], False),
        (torch.zeros(1, 6).expand(4, 6), False),
        (torch.zeros(12).as_strided((2, 2), (0, 3)), False),
        (torch.zeros(12).as_strided((3, 3), (1, 1)), False),
    ],
)
def test_dense_is_what_fills_one_stretch_of_memory_once(tensor, dense):
    assert is_dense(tensor) is dense


class Packed:
    """A kernel's weight of its own, as vLLM's b12x kernels keep one beside the module's."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight.view(torch.uint8)


def watched(position: int, module: torch.nn.Module) -> Former:
    """As a series loads a position; its other rank owns position 1, and this one reads a slot."""
    series = series_on(CpuDevice(CPU))
    series.adopt(position, module, ("weight",))
    return series._former


def test_a_tensor_that_a_kernel_keeps_is_refused_where_it_becomes_an_alias(monkeypatch):
    monkeypatch.setattr("vllm_layershard.runtime.former.PATIENCE_S", 0.05)
    packing = linear()
    packing.packed = Packed(packing.weight.detach())  # type: ignore[assignment]
    watched(0, packing).require_let_go()  # its owner reads where it did before
    refusal = "layer 1 of series 'o_proj': its quant method keeps the tensor 'weight' for a kernel"
    with pytest.raises(HostError, match=refusal):
        watched(1, packing).require_let_go()
    watched(1, linear()).require_let_go()


def test_a_cycle_that_a_loader_leaves_behind_keeps_nothing():
    module = linear()
    loop: list[object] = [module.weight.detach()]
    loop.append(loop)
    del loop
    watched(1, module).require_let_go()


def test_a_thread_of_a_collective_may_let_go_a_moment_later():
    module = linear()
    kept = [module.weight.detach()]
    former = watched(1, module)
    timer = Timer(0.1, kept.clear)
    timer.start()
    former.require_let_go()
    assert kept == []
