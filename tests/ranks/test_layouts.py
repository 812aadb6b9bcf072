"""Every layout's groups with real ranks: split linears and whole ones, stages that start anywhere.

vLLM has no context parallelism on a CPU (tests/vllm/hooks/test_settings.py):
its groups are shown here.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gloo.ranks import run_ranks
from vllm_layershard.plan import ParallelLayout, Series, build_plan, stage_layers
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import create_groups
from vllm_layershard.runtime.transport import transport_of

RANKS = 4
LAYERS = 7
ELEMENTS = 64

LAYOUTS = [
    ParallelLayout(pcp=4),
    ParallelLayout(tp=2, pcp=2),
    ParallelLayout(dp=2, pcp=2),
    ParallelLayout(pcp=2, pp=2),
    ParallelLayout(dp=2, tp=2),
    ParallelLayout(dp=2, pp=2),
    ParallelLayout(tp=4, dcp=2),
]


class Weight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((ELEMENTS,), value), requires_grad=False)


def value_of(layer: int, tp_rank: int, kind: tuple[bool, int]) -> float:
    """What a rank must read; a split linear's weight differs from one part to the next."""
    whole, copies = kind
    return 10.0 * layer + (9 if whole else tp_rank // copies)


@torch.inference_mode()
def read_all(rank: int) -> list[tuple[str, list[bool]]]:
    """All cases in one start of the ranks: importing torch takes longer than each."""
    cases = [(layout, transport) for layout in LAYOUTS for transport in ("broadcast", "pull")]
    return [(f"{transport} {layout}", read(rank, layout, transport)) for layout, transport in cases]


def read(rank: int, layout: ParallelLayout, transport: str) -> list[bool]:
    kinds = [kind for kind in layout.kinds if layout.group_size(*kind) > 1]
    wanted = [layout.groups(*kind) for kind in kinds]
    groups = create_groups(list(dict.fromkeys(chain(*wanted))), "gloo")
    tp_rank = rank % layout.tp
    layers = stage_layers(LAYERS, layout.pp)[layout.stage_of(rank)]
    right = []
    for kind, of_kind in zip(kinds, wanted, strict=True):
        (group,) = (group for group in groups.values() if group.ranks in of_kind)
        series = Series("linear", tuple(layers), ELEMENTS * 4)
        (plan,) = build_plan([series], group.size, prefetch_step=1).series
        device = device_of(torch.device("cpu"))
        loading = LoadingSeries(plan, group, device, transport_of(plan, group, device, transport))
        modules = [Weight(value_of(layer, tp_rank, kind)) for layer in layers]
        for position, module in enumerate(modules):
            if not plan.is_resident(position, group.group_rank):
                module.weight.fill_(torch.nan)  # what it must get from its owner
            loading.adopt(position, module, ("weight",))
        sharded = loading.finish(plan)
        sharded.slots.poison()
        for _ in range(2):
            for position, (module, layer) in enumerate(zip(modules, layers, strict=True)):
                sharded.reach(position)
                sharded.wait(position)
                right.append(bool((module.weight == value_of(layer, tp_rank, kind)).all()))
        group.gather(None)  # nobody leaves while another still reads its memory
    return right


def test_every_rank_reads_its_own_copies(tmp_path):
    assert {layout.world_size for layout in LAYOUTS} == {RANKS}
    for cases in run_ranks(RANKS, read_all, tmp_path):
        assert len(cases) == 2 * len(LAYOUTS)
        for name, right in cases:
            assert right, name
            assert all(right), name


PAGE = (Path(__file__).parents[2] / "docs" / "manual-api.md").read_text()


def shown() -> dict[str, Any]:
    """The names of the page's example of tokens that are split over ranks."""
    _, _, section = PAGE.partition("## Split the tokens over the ranks\n")
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], names)
    return names


def split_tokens(rank: int) -> list[list[float]]:
    return shown()["main"](rank).tolist()


@torch.inference_mode()
def in_one_process(rank: int, ranks: int) -> list[list[list[float]]]:
    """The layers whole: row chunk by row chunk, as that many ranks have them, and all at once."""
    names = shown()
    torch.manual_seed(0)
    layers = [names["Attention"]() for _ in range(names["LAYERS"])]
    tokens = torch.randn(names["TOKENS"], names["WIDTH"])
    found = []
    for chunks in (ranks, 1):
        rows = [*tokens.chunk(chunks)]
        for layer in layers:
            keys, values = torch.cat([layer.kv_proj(x) for x in rows]).chunk(2, dim=-1)
            first = 0
            for i, x in enumerate(rows):
                seen = torch.ones(len(x), len(tokens), dtype=torch.bool).tril(first)
                first += len(x)
                scores = (layer.q_b_proj(x) @ keys.mT).masked_fill(~seen, -torch.inf)
                rows[i] = x + layer.o_proj(torch.softmax(scores, dim=-1) @ values)
        found.append(torch.cat(rows).tolist())
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_tokens_split_over_ranks_are_computed_as_in_one_process(ranks, tmp_path):
    """Bit for bit as the same row chunks, and to rounding as all rows at once."""
    ((by_chunk, at_once),) = run_ranks(1, in_one_process, tmp_path, ranks)
    for output in run_ranks(ranks, split_tokens, tmp_path):
        assert output == by_chunk
        torch.testing.assert_close(torch.tensor(output), torch.tensor(at_once))
