"""Every printed command, on every node, is read by vLLM's own parser; ranks are where it puts them.

vLLM builds its whole configuration of each, and asks no address.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkpoints import small_config
from hosted.child import run_child
from hosted.tiny import DENSE, write_config
from vllm_layershard import Layout, plan_model
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.planner.hardware import load_hardware
from vllm_layershard.planner.node_launch import ADDRESS

READ = """
import json, shlex, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

def read(command):
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("vllm", "serve")
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    args.model = args.model_tag
    validate_parsed_serve_args(args)
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER, headless=args.headless
    )
    parallel = config.parallel_config
    return {
        "headless": args.headless,
        "addresses": [parallel.data_parallel_master_ip, parallel.master_addr],
        "balanced_apart": parallel.local_engines_only,
        "engine": parallel.world_size,
        "size": parallel.data_parallel_size,
        "first": parallel.data_parallel_rank,
        "engines": parallel.data_parallel_size_local,
        "nodes": parallel.nnodes,
        "part": parallel.node_rank_within_dp,
        "of_an_engine": parallel.local_world_size,
        "sharded": config.additional_config["layer_sharding"],
    }

result = [[read(command) for command in commands] for commands in json.loads(sys.argv[1])]
"""

MOE = small_config(num_attention_heads=32, vocab_size=1024, n_routed_experts=64)
WIDE_DENSE = DENSE | {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 8}


class Case(NamedTuple):
    """A plan on nodes of so many devices, and the ranks that vLLM has to have on each."""

    layout: Layout
    ranks: list[list[int]]
    devices: int = 8
    dense: bool = False
    exchange: bool = False


def nodes(*counts: int) -> list[list[int]]:
    """So many ranks on each node, one after the other."""
    return [list(range(sum(counts[:i]), sum(counts[: i + 1]))) for i in range(len(counts))]


CASES = {
    "one node": Case(Layout(dp=8, ep=True), nodes(8)),
    "one node, engines of two": Case(Layout(tp=2, dp=4, ep=True), nodes(8)),
    "two nodes of eight engines": Case(Layout(dp=16, ep=True), nodes(8, 8)),
    "nine engines": Case(Layout(dp=9, ep=True), nodes(8, 1)),
    "five nodes, the last one not full": Case(Layout(dp=18, ep=True), nodes(4, 4, 4, 4, 2), 4),
    "engines of four": Case(Layout(tp=4, dp=4), nodes(8, 8)),
    "engines of two stages": Case(Layout(dp=8, pp=2, ep=True), nodes(8, 8)),
    "an engine that fills a node": Case(Layout(tp=8, dp=3, ep=True), nodes(8, 8, 8)),
    "engines of three on nodes of eight": Case(Layout(dp=5, pp=3, ep=True), nodes(6, 6, 3)),
    "an engine on two nodes": Case(Layout(tp=8, pp=2, ep=True), nodes(8, 8), exchange=True),
    "two engines on two nodes each": Case(Layout(tp=16, dp=2, ep=True), nodes(8, 8, 8, 8)),
    "stages on nodes": Case(Layout(tp=4, dp=2, pp=4, ep=True), nodes(8, 8, 8, 8)),
    "an engine of twelve": Case(Layout(tp=4, dp=2, pp=3, ep=True), nodes(6, 6, 6, 6)),
    "one device a node": Case(Layout(dp=3, ep=True), nodes(1, 1, 1), 1),
    "replicas": Case(Layout(dp=8), nodes(8), dense=True),
    "engines of replicas": Case(Layout(tp=4, dp=4), nodes(8, 8), dense=True, exchange=True),
    "an engine of a dense model": Case(Layout(tp=16), nodes(8, 8), dense=True, exchange=True),
    # Each engine is a server of its own: the nodes are those of one.
    "dense engines on two nodes": Case(Layout(tp=16, dp=2), nodes(8, 8), dense=True, exchange=True),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What vLLM understands of each command of each case."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        False: write_config(folder / "experts", MOE),
        True: write_config(folder / "dense", WIDE_DENSE),
    }
    commands = [list(launches(case, models[case.dense])) for case in CASES.values()]
    return dict(zip(CASES, run_child(READ, json.dumps(commands)), strict=True))


def launches(case: Case, model: Path) -> tuple[str, ...]:
    device = replace(
        load_hardware("H200"), node_size=Figure(case.devices, "assumed", "this test's")
    )
    names = ["o_proj"]
    options = {"token_exchange": names} if case.exchange else {}
    result = plan_model(model, names, case.layout, hardware=device, **options)
    assert result.launch == result.launches[0]
    assert any(ADDRESS in warning for warning in result.warnings) == (len(result.launches) > 1)
    return result.launches


def ranks_of(node: dict[str, Any]) -> list[int]:
    """The global ranks that vLLM starts on a node."""
    start, held = node["first"] * node["engine"], node["engines"] * node["engine"]
    if node["nodes"] > 1:
        start, held = start + node["part"] * node["of_an_engine"], node["of_an_engine"]
    return list(range(start, start + held))


@pytest.mark.parametrize("name", CASES)
def test_each_node_has_its_ranks_and_the_first_one_serves(
    name: str, read: dict[str, list[dict[str, Any]]]
) -> None:
    case, found = CASES[name], read[name]
    assert [ranks_of(node) for node in found] == case.ranks
    assert all(len(ranks) <= case.devices for ranks in case.ranks)
    assert [node["headless"] for node in found] == [i > 0 for i in range(len(found))]
    assert not any(node["balanced_apart"] for node in found)
    apart = case.dense and case.layout.tp > case.devices
    assert {node["size"] for node in found} == {1 if apart else case.layout.dp}
    for node in found:
        assert "o_proj" in json.dumps(node["sharded"])
        assert (ADDRESS in node["addresses"]) == (len(found) > 1)


PARSE = """
import json, shlex, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

result = []
for command in json.loads(sys.argv[1]):
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(shlex.split(command)[2:])
    mode = args.compilation_config.cudagraph_mode
    result.append([None if mode is None else mode.name, args.language_model_only])
"""


def test_what_context_parallelism_asks_for_is_read() -> None:
    """This machine's platform has no context parallelism, so that the flags alone are read."""
    layout = Layout(dp=32, pcp=2, ep=True)
    plans = [
        plan_model(model, layout=layout, hardware="B300")
        for model in ("DeepSeek-V3.2", "Kimi-K2.5", "DeepSeek-V3")
    ]
    commands = json.dumps([plan.launch for plan in plans])
    assert run_child(PARSE, commands) == [["NONE", False], [None, True], [None, False]]
