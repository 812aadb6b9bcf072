"""The bound of sequences in a launch line is what vLLM's scheduler runs on all stages together."""

from __future__ import annotations

import json

import pytest

from checkpoints import small_config
from hosted.child import run_child
from hosted.tiny import write_config
from vllm_layershard import Layout, plan_model

SCHEDULE = """
import json, shlex, sys
import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16

def scheduler_of(command):
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(shlex.split(command)[2:])
    args.model, args.skip_tokenizer_init = args.model_tag, True
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER
    )
    config.cache_config.num_gpu_blocks = 4096
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
    cache = KVCacheConfig(4096, [], [KVCacheGroupSpec(["layer"], spec)])
    return Scheduler(config, cache, StructuredOutputManager(config), BLOCK)

def batches_in_flight(command, wave, waves):
    "The sequences of each batch, where so many arrive before it and none comes back."
    scheduler, batches = scheduler_of(command), []
    for number in range(waves):
        for i in range(wave):
            sampling = SamplingParams(max_tokens=8)
            scheduler.add_request(Request(f"{number}-{i}", [1], sampling, None))
        batches.append(len(scheduler.schedule().num_scheduled_tokens))
    return batches

result = [batches_in_flight(*asked) for asked in json.loads(sys.argv[1])]
"""


CASES = {
    "one stage": (1, {"batch": 300, "tokens": 1024}),
    "two stages": (2, {"batch": 300, "tokens": 1024}),
    "three stages": (3, {"batch": 300, "tokens": 1024}),
    "as many tokens as sequences": (2, {"batch": 200, "tokens": 200}),
}
"""Pipeline stages, and the plan's forwards."""


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Sequences of the batches in flight, where as many arrive before each as a stage decodes.

    One more wave arrives than there are stages.
    """
    config = small_config(num_hidden_layers=6, n_routed_experts=64)
    model = write_config(tmp_path_factory.mktemp("model"), config)
    asked = []
    for stages, sizes in CASES.values():
        layout = Layout(dp=2, pp=stages, ep=True)
        launch = plan_model(model, ["o_proj"], layout, hardware="H200", **sizes).launch
        asked.append((launch, sizes["batch"], stages + 1))
    return dict(zip(CASES, run_child(SCHEDULE, json.dumps(asked)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_every_stage_may_have_the_plans_decode(name: str, batches: dict[str, list[int]]) -> None:
    """And the batch after them finds no room, until one comes back."""
    stages, sizes = CASES[name]
    assert batches[name] == [sizes["batch"]] * stages + [0]
