"""What NCCL is told of a group that moves weights. None is here: torch's stub says its shape."""

from __future__ import annotations

import ast
import logging
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vllm_layershard.errors import HostError
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.ranks import group as groups
from vllm_layershard.runtime.ranks import nccl
from vllm_layershard.runtime.ranks.group import RankGroup, create_groups
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Broadcast

STUB = Path(torch.__file__).parent / "_C" / "_distributed_c10d.pyi"
MINUTE = timedelta(seconds=60)


def names_of(dotted: str) -> set[str]:
    """The attributes and methods that torch's stub gives a class, its bases' among them."""
    found: ast.Module | ast.ClassDef = ast.parse(STUB.read_text())
    for name in dotted.split("."):
        found = next(x for x in found.body if isinstance(x, ast.ClassDef) and x.name == name)
    assert isinstance(found, ast.ClassDef)
    named = {x.target.id for x in found.body if isinstance(x, ast.AnnAssign)}  # type: ignore[union-attr]
    named |= {x.name for x in found.body if isinstance(x, ast.FunctionDef)}
    bases = [ast.unparse(base) for base in found.bases if ast.unparse(base) not in ("object",)]
    return named.union(*(names_of(base) for base in bases))


def binding(version: tuple[int, ...], config: bool = True, tells: bool = True) -> Any:
    """A stand-in that records, and takes no attribute that torch's own would not."""

    def strict(name: str, dotted: str, without: tuple[str, ...] = ()) -> type:
        slots = [x for x in names_of(dotted) if not x.startswith("__") and x not in without]
        return type(name, (), {"__slots__": slots})

    kind = strict("Options", "ProcessGroupNCCL.Options", () if config else ("config",))

    def make() -> Any:
        options = kind()
        if config:
            options.config = strict("NCCLConfig", "ProcessGroupNCCL.NCCLConfig")()
        return options

    made: dict[str, Any] = {"Options": make}
    if tells:
        assert "get_runtime_nccl_version" in names_of("ProcessGroupNCCL")
        made["get_runtime_nccl_version"] = lambda: version
    return SimpleNamespace(**made)


@pytest.mark.parametrize("backend", ["nccl", "cuda:nccl", "cpu:gloo,cuda:nccl"])
def test_a_group_over_nccl_may_take_a_few_blocks_only(monkeypatch, backend):
    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    options = nccl.options_for(backend, MINUTE)
    assert options is not None
    assert options.config.max_ctas == nccl.MAX_CTAS == 8
    assert options._timeout == MINUTE, "torch warns where it differs from the group's"


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo", "hccl", "npu:hccl,cpu:gloo"])
def test_other_backends_have_options_of_their_own(monkeypatch, backend):
    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    assert nccl.options_for(backend, MINUTE) is None


@pytest.mark.parametrize(
    ("old", "said"),
    [(binding((2, 16, 5)), "NCCL 2.16.5 is"), (binding((), config=False, tells=False), "NCCL is")],
)
def test_an_nccl_that_cannot_be_bounded_is_refused_by_its_version(old, said):
    with pytest.raises(HostError, match=f"{said} too old.*use a torch with NCCL 2.26 or later"):
        nccl.bounded_options(old, None)


@pytest.mark.parametrize(
    ("environ", "version", "said"),
    [
        ({}, (2, 27, 5), "NCCL_LAUNCH_ORDER_IMPLICIT is not set"),
        ({"NCCL_LAUNCH_ORDER_IMPLICIT": "0"}, (2, 27, 5), "NCCL_LAUNCH_ORDER_IMPLICIT is not set"),
        ({"NCCL_LAUNCH_ORDER_IMPLICIT": "1"}, (2, 25, 1), "NCCL 2.25.1 does not order"),
        ({"NCCL_LAUNCH_ORDER_IMPLICIT": "1"}, (2, 26, 2), None),
    ],
)
def test_two_communicators_need_an_order(environ, version, said):
    fault = nccl.order_fault(environ, binding(version))
    assert fault is None if said is None else fault is not None and said in fault


def test_what_moves_weights_is_bounded_and_what_computes_is_not(monkeypatch):
    """Of vLLM's two kinds of groups of ours: layers that move, and dense MLPs in parts."""
    made: list[tuple[str, Any]] = []

    def new_group(ranks, timeout, backend, pg_options=None):
        made.append((backend, None if pg_options is None else pg_options.config.max_ctas))
        return object()

    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(groups.dist, "new_group", new_group)
    (moved,) = create_groups([(0, 1)], "nccl", data_timeout=MINUTE, beside_others=True).values()
    (split,) = create_groups([(0, 1)], "nccl", data_timeout=MINUTE, tokens_too=True).values()
    assert made == [("nccl", 8), ("gloo", None), ("nccl", None), ("gloo", None)]
    assert moved.tokens is moved.data
    assert split.tokens is split.data, "it is not bounded, and one communicator is enough"


def test_tokens_have_a_group_without_a_bound_beside_that_of_the_weights(monkeypatch):
    """The compute waits for them at once: eight blocks would slow it down."""
    made: dict[Any, Any] = {}

    def new_group(ranks, timeout, backend, pg_options=None):
        group = object()
        made[group] = (backend, None if pg_options is None else pg_options.config.max_ctas)
        return group

    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(groups.dist, "new_group", new_group)
    both = {"beside_others": True, "tokens_too": True}
    (group,) = create_groups([(0, 1)], "nccl", data_timeout=MINUTE, **both).values()
    assert (made[group.data], made[group.tokens]) == (("nccl", 8), ("nccl", None))
    (group,) = create_groups([(0, 1)], "gloo", data_timeout=MINUTE, **both).values()
    assert group.tokens is group.data, "nothing bounds gloo"


def test_what_the_manual_api_moves_is_bounded_too(monkeypatch):
    made: list[tuple[str, Any, timedelta]] = []

    def new_group(ranks, timeout, backend, pg_options=None, use_local_synchronization=False):
        options = None if pg_options is None else pg_options.config.max_ctas
        made.append((backend, options, timeout))
        return object()

    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    monkeypatch.setattr(groups.dist, "new_group", new_group)
    monkeypatch.setattr(groups, "get_backend_config", lambda given: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(groups, "_timeout_of", lambda given: MINUTE)
    monkeypatch.setattr(groups, "_count_alike", lambda given: None)
    groups.private_group(RankGroup((0, 1), 0, data=None, control=None))  # type: ignore[arg-type]
    assert made == [("cpu:gloo,cuda:nccl", 8, MINUTE), ("gloo", None, MINUTE)]


class NcclDevice(CpuDevice):
    """A CPU that says that NCCL moves its tensors; nothing moves here."""

    backend = "nccl"


def opened(rank: int, device: CpuDevice) -> None:
    (plan,) = build_plan([Series("o_proj", tuple(range(5)), 4)], 2, 1).series
    group = RankGroup((0, 1), rank, data=None, control=None)  # type: ignore[arg-type]
    template = (torch.empty(4, dtype=torch.uint8),)
    Broadcast(group, device).open(plan, SlotPool(2, template, device.torch_device))


def test_one_rank_warns_once_of_a_missing_order(monkeypatch, caplog):
    monkeypatch.setattr(dist, "ProcessGroupNCCL", binding((2, 27, 5)), raising=False)
    monkeypatch.setattr(nccl, "_has_warned", False)
    monkeypatch.delenv("NCCL_LAUNCH_ORDER_IMPLICIT", raising=False)
    cpu = torch.device("cpu")
    with caplog.at_level(logging.WARNING, "vllm"):
        opened(0, CpuDevice(cpu))  # gloo needs none
        opened(1, NcclDevice(cpu))  # the first rank says it
        assert caplog.messages == []
        for _ in range(3):
            opened(0, NcclDevice(cpu))
    (message,) = caplog.messages
    assert "set NCCL_LAUNCH_ORDER_IMPLICIT=1" in message
    monkeypatch.setattr(nccl, "_has_warned", False)
    monkeypatch.setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
    opened(0, NcclDevice(cpu))
    assert caplog.messages == [message]
