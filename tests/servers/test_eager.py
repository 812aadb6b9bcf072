"""Eager servers on two data-parallel ranks: as transformers, then as each other to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import probe
from serving.answers import ask, check_identical
from serving.cache import check_cache
from serving.layout import TWO_RANKS
from serving.reports import check_reports
from serving.server import Server

pytestmark = pytest.mark.serve

FOUR = ["o_proj", "q_b_proj", "shared_experts.down_proj", "mlp.gate_up_proj"]


def test_the_unsharded_server_says_what_transformers_says(plain_eager, reference):
    assert [answer.token_ids for answer in plain_eager] == reference


def test_a_key_that_is_nearly_ours_is_warned_of_once_and_shards_nothing(plain):
    _, log = plain
    warning = "Layer sharding is off: additional_config has no key 'layer_sharding', but"
    assert log.count(f"{warning} 'layer_shardings'") == 1
    assert "Layer sharding: series " not in log


TWO = ["o_proj", "q_b_proj"]


def asking(layers: list[str], prefetch_step: int, directory: Path) -> dict:
    return {
        "layers": layers,
        "prefetch_step": prefetch_step,
        "report_dir": str(directory / "reports"),
        "verify": True,
    }


@pytest.mark.matrix(part="exchange")
@pytest.mark.parametrize("prefetch_step", [0, 3])
def test_four_names_say_what_the_unsharded_server_says(
    model, prompts, plain_eager, tmp_path, prefetch_step
):
    with Server(model, tmp_path / "log", sharding=asking(FOUR, prefetch_step, tmp_path)) as server:
        check_identical(ask(server, prompts), plain_eager)
        check_reports(tmp_path / "reports", model, FOUR, prefetch_step)


@pytest.mark.matrix(part="exchange")
def test_with_the_first_layer_kept_too(model, prompts, plain_eager, tmp_path):
    sharding = asking(FOUR, 2, tmp_path) | {"keep_first": True}
    with Server(model, tmp_path / "log", sharding=sharding) as server:
        check_identical(ask(server, prompts), plain_eager)
        check_reports(tmp_path / "reports", model, FOUR, 2, keep_first=True)


def test_two_names_and_that_the_bytes_really_travel(model, prompts, plain_eager, tmp_path):
    """One server: first as it is, then with its slots poisoned and an owner's weight changed."""
    few = prompts[:8]
    with Server(
        model,
        tmp_path / "log",
        sharding=asking(TWO, 1, tmp_path),
        arguments=probe.ARGUMENTS,
        environment=probe.ENVIRONMENT,
        api_servers=None,
    ) as server:
        check_identical(ask(server, prompts), plain_eager)
        check_reports(tmp_path / "reports", model, TWO, 1)
        check_cache(server.log_text(), model, TWO_RANKS)

        before = ask(server, few, rank=1)
        addresses = server.post("/collective_rpc", {"method": "addresses"})

        poisoned = server.post("/collective_rpc", {"method": "poison_slots"})
        assert poisoned["results"] == ["2"]  # vLLM runs it on all ranks and shows the first's
        assert ask(server, few, rank=1) == before

        changed = server.post("/collective_rpc", {"method": "negate_owned", "args": [0, 4]})
        assert changed["results"] == [["o_proj", "q_b_proj"]]
        assert ask(server, few, rank=1) != before, "rank 0's new weight did not reach rank 1"

        server.post("/collective_rpc", {"method": "negate_owned", "args": [0, 4]})
        assert ask(server, few, rank=1) == before
        assert server.post("/collective_rpc", {"method": "addresses"}) == addresses
    assert [answer.token_ids for answer in before] == [a.token_ids for a in plain_eager[:8]]
