"""`auto` on CUDA: two ranks pull where the driver says that they can, and no check refuses it.

A broadcast that is captured is not registered with NCCL where sleep mode gives its memory away.

vLLM's own `create_engine_config` decides, with its CUDA platform; no GPU is needed for it.
"""

from __future__ import annotations

import json

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

DECIDE = """
import json, os, sys
from hosted.cuda import stand_in

stand_in()
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm_layershard.config import KEY
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.settings import layout_of, requested

type(current_platform).is_cumem_allocator_available = lambda self: True  # asks for a library
asked = []

def answered(answer):
    def is_fully_connected(gpus):
        asked.append(gpus)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer
    type(current_platform).is_fully_connected = staticmethod(is_fully_connected)

def decided(config):
    layout = layout_of(config, requested(config))
    sizes = [layout.group_size(whole) for whole in (False, True)]
    return " and ".join(dict.fromkeys(layout.transport_of(size) for size in sizes))

REGISTER = "NCCL_GRAPH_REGISTER"
result = []
for arguments, options, environ, answer in json.loads(sys.argv[1]):
    answered(answer)
    asked.clear()
    os.environ.pop(REGISTER, None)
    os.environ.update(environ)
    try:
        config = EngineArgs(
            skip_tokenizer_init=True, additional_config={KEY: {"layers": ["o_proj"], **options}},
            model=sys.argv[2], **{"data_parallel_size": 2, **arguments},
        ).create_engine_config()
    except HostError as error:
        result.append([str(error), list(asked), None])
        continue
    finally:
        registers = os.environ.get(REGISTER)
        for name in environ:
            del os.environ[name]
    assert config.device_config.device_type == "cuda"
    transport = decided(config)
    first = list(asked)
    answered("a worker sees one GPU of its own")
    config.__post_init__()
    assert decided(config) == transport, "decided once"
    result.append([transport, first, registers])

from vllm_layershard.hosts.exclusions import gpus_reach_each_other
config = EngineArgs(
    skip_tokenizer_init=True, model=sys.argv[2], tensor_parallel_size=2
).create_engine_config()
answered(True)

def reaches(**fields):
    former = {name: getattr(config.parallel_config, name) for name in fields}
    vars(config.parallel_config).update(fields)
    try:
        return gpus_reach_each_other(config)
    finally:
        vars(config.parallel_config).update(former)

result.append([  # vLLM's configuration accepts Ray only where it is installed
    reaches(),
    reaches(distributed_executor_backend="ray"),
    reaches(distributed_executor_backend=type("AnExecutorOfOnesOwn", (), {})),
    reaches(data_parallel_backend="ray"),
])
"""

PAIR = [[0, 1]]
CASES = {
    "two that reach each other": ({}, {}, {}, True, "pull", PAIR),
    "two that do not": ({}, {}, {}, False, "broadcast", PAIR),
    "two of which the driver cannot tell": ({}, {}, {}, "no such GPU", "broadcast", PAIR),
    "asked to broadcast": ({}, {"transport": "broadcast"}, {}, True, "broadcast", PAIR),
    "three": ({"data_parallel_size": 3}, {}, {}, True, "broadcast", [[0, 1, 2]]),
    "pairs of split linears, and whole ones that four share": (
        {"tensor_parallel_size": 2},
        {},
        {},
        True,
        "pull and broadcast",
        [[0, 1, 2, 3]],
    ),
    "sleep": ({"enable_sleep_mode": True}, {}, {}, True, "broadcast", []),
    "sleep without graphs": (
        {"enable_sleep_mode": True, "enforce_eager": True},
        {},
        {},
        True,
        "broadcast",
        [],
    ),
    "sleep, and registered as it is": (
        {"enable_sleep_mode": True},
        {},
        {"NCCL_GRAPH_REGISTER": "0"},
        True,
        "broadcast",
        [],
    ),
    "sleep, and registered": (
        {"enable_sleep_mode": True},
        {},
        {"NCCL_GRAPH_REGISTER": "1"},
        True,
        "layer_sharding: with --enable-sleep-mode and NCCL_GRAPH_REGISTER=1 other ranks keep "
        "memory mapped that sleep gives away, and captured broadcasts would write there; unset "
        "NCCL_GRAPH_REGISTER, or leave --enable-sleep-mode out",
        [],
    ),
    "parts launched apart": (
        {"data_parallel_size_local": 1, "data_parallel_address": "127.0.0.1"},
        {},
        {},
        True,
        "broadcast",
        [],
    ),
    "another allocator": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        True,
        "broadcast",
        [],
    ),
    "segments that grow": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512, expandable_segments:True"},
        True,
        "broadcast",
        [],
    ),
    "segments that grow, by torch's newer name": (
        {},
        {},
        {"PYTORCH_ALLOC_CONF": "expandable_segments: True"},
        True,
        "broadcast",
        [],
    ),
    "segments that do not grow": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
        True,
        "pull",
        PAIR,
    ),
    "segments that do not grow, after a space": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": " expandable_segments : False"},
        True,
        "pull",
        PAIR,
    ),
    "segments that do not grow, as was said last": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,expandable_segments:False"},
        True,
        "pull",
        PAIR,
    ),
    "segments that grow, as was said last": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False,expandable_segments:True"},
        True,
        "broadcast",
        [],
    ),
    "segments of which torch refuses what is said": (
        {},
        {},
        {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:false"},
        True,
        "broadcast",
        [],
    ),
    "ranks that another launcher places": (
        {
            "data_parallel_size": 1,
            "tensor_parallel_size": 2,
            "distributed_executor_backend": "external_launcher",
        },
        {},
        {},
        True,
        "broadcast",
        [],
    ),
}


@pytest.fixture(scope="module")
def decided(tmp_path_factory) -> dict:
    model = write_config(tmp_path_factory.mktemp("model"), CONFIG)
    found = run_child(DECIDE, json.dumps([case[:4] for case in CASES.values()]), str(model))
    return dict(zip([*CASES, "by Ray"], found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_auto_pulls_between_two_gpus_that_reach_each_other(decided, case):
    assert decided[case][:2] == list(CASES[case][4:6])


def test_ranks_that_another_executor_places_are_not_known_to_reach_each_other(decided):
    assert decided["by Ray"] == [True, False, False, False]


def test_captured_broadcasts_are_not_registered_where_ranks_may_sleep(decided):
    """And NCCL is left alone elsewhere. A value of the user's is kept, or refused by its name."""
    assert {case: found[2] for case, found in decided.items() if case in CASES and found[2]} == {
        "sleep": "0",
        "sleep, and registered as it is": "0",
    }
    assert decided["sleep, and registered"][0].startswith("layer_sharding: with --enable-sleep")
