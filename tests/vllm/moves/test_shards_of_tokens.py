"""What has vLLM's layers run on shards of the tokens: each is refused wherever tokens are counted.

No CPU can be asked for most of it, so it is set where vLLM keeps it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

PARALLEL = "config.parallel_config"
BACKEND = "config.kernel_config.moe_backend"
EXPERTS = {f"{PARALLEL}.enable_expert_parallel": True}
WITH_DATA = "--enable-expert-parallel with tensor and data parallelism"
WITH_MEGA_MOE = "--enable-expert-parallel with tensor parallelism and a mega-MoE backend"

ASKED = """
import json, sys
from typing import get_args
from vllm.config.kernel import MEGA_MOE_BACKENDS
from vllm.config.parallel import All2AllBackend
from vllm.engine.arg_utils import EngineArgs
from vllm_layershard.hosts.exclusions import splitting_tokens
from vllm_layershard.hosts.ffn.settings import check_ffn
from vllm_layershard.hosts.settings import check

def answers(sizes, values, keys):
    tp, dp, pp = sizes
    config = EngineArgs(
        model=sys.argv[1], tensor_parallel_size=tp, data_parallel_size=dp,
        pipeline_parallel_size=pp, skip_tokenizer_init=True, additional_config=keys,
    ).create_engine_config()
    for where, value in values.items():
        owner, _, name = where.rpartition(".")
        setattr(eval(owner), name, value)
    try:
        check(config), check_ffn(config)
        said = "accepted"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return [splitting_tokens(config), said]

cases = [answers(*case) for case in json.loads(sys.argv[2])]
result = [cases, sorted(MEGA_MOE_BACKENDS), sorted(get_args(All2AllBackend))]
"""

Case = tuple[tuple[int, int, int], dict[str, Any], dict[str, Any]]
"""Tensor-, data- and pipeline-parallel size; what is set, and where; `additional_config`."""


def asked(model: str, cases: list[Case]) -> list[Any]:
    return run_child(ASKED, model, json.dumps(cases))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_config(tmp_path_factory.mktemp("model"), CONFIG))


def test_each_kind_is_told_with_the_layouts_in_which_it_splits(model: str) -> None:
    _, mega, movers = asked(model, [])
    assert len(mega) >= 3
    assert len(movers) >= 10
    hc = {f"{PARALLEL}.enable_hc_sp": True}
    one_engine = [(EXPERTS | {BACKEND: backend}) for backend in mega]
    all_movers = [(EXPERTS | {f"{PARALLEL}.all2all_backend": mover}) for mover in movers]
    compiler = {"config.compilation_config.pass_config.enable_sp": True}
    expected = [
        (((2, 1, 1), hc, {}), ["--enable-hc-sp"]),
        (((1, 2, 1), hc, {}), []),
        (((2, 1, 1), compiler, {}), ["the compiler's enable_sp"]),
        *((((2, 1, 1), each, {}), [WITH_MEGA_MOE]) for each in one_engine),
        (((2, 1, 2), one_engine[0], {}), []),
        (((1, 2, 1), one_engine[0], {}), []),
        (((2, 1, 1), {BACKEND: mega[0]}, {}), []),
        (((2, 1, 1), EXPERTS | {BACKEND: "triton"}, {}), []),
        *((((2, 2, 1), each, {}), [WITH_DATA]) for each in all_movers),
        (((1, 2, 1), EXPERTS, {}), []),
        (((2, 2, 1), {}, {}), []),
    ]
    found, _, _ = asked(model, [case for case, _ in expected])
    for (case, wanted), (settings, _) in zip(expected, found, strict=True):
        assert len(settings) == len(wanted), (case, settings)
        assert all(want in said for want, said in zip(wanted, settings, strict=True)), settings


MOVE = {"layer_sharding": {"layers": ["o_proj"], "move": "auto", "move_weights_from": 8}}
EXCHANGE = {"layer_sharding": {"layers": ["o_proj"], "token_exchange": ["o_proj"]}}
SPLIT = {"denseffn_tensor_parallel_size": 2}


def test_it_is_refused_by_name_wherever_tokens_are_counted(model: str) -> None:
    hc = {f"{PARALLEL}.enable_hc_sp": True}
    mega = EXPERTS | {BACKEND: "deep_gemm_mega_moe"}
    named = {
        "HostError: layer_sharding.move = 'auto': with ": ((2, 1, 1), MOVE),
        "HostError: layer_sharding.token_exchange: with ": ((2, 1, 1), EXCHANGE),
        "HostError: denseffn_tensor_parallel_size: cannot be combined with ": ((2, 2, 1), SPLIT),
    }
    for values, setting in ((hc, "--enable-hc-sp"), (mega, "sequence parallelism of routed")):
        found, _, _ = asked(model, [(sizes, values, keys) for sizes, keys in named.values()])
        for prefix, (_, said) in zip(named, found, strict=True):
            assert said.startswith(prefix + setting), said
            assert "\n" not in said
