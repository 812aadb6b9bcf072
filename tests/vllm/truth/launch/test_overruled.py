"""The tests' guard knows what vLLM turns off: its own configuration of each command is asked."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch

from checkpoints import small_config
from hosted.child import run_child
from hosted.tiny import DENSE, write_config
from serving.metrics import CACHED
from serving.obeyed import overruled

CHUNKED = ("--enable-chunked-prefill", "--max-num-batched-tokens", "32")
LORA = ("--enable-lora", "--max-lora-rank", "8")
EAGER = ("--enforce-eager",)

CONFIGURE = """
import json, logging, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.version import __version__

class Lines(logging.Handler):
    def emit(self, record):
        log.append(record.getMessage())

log = []
logging.getLogger("vllm").addHandler(Lines())
logging.getLogger("vllm").setLevel(logging.INFO)

def logged(words):
    log.clear()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    args.model = args.model_tag
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER
    )
    # as in v1/engine/core.py, which needs a model to get there
    log.append(f"Initializing a V1 LLM engine (v{__version__}) with config: {config}")
    return "\\n".join(log)

result = [logged(words) for words in json.loads(sys.argv[1])]
"""


class Case(NamedTuple):
    """Options of a server of a small model, and those that vLLM turns off."""

    options: tuple[str, ...]
    off: list[str]
    mla: bool = False


CASES = {
    "both of a model without MLA": Case((*EAGER, *CACHED, *CHUNKED), []),
    "both, compiled": Case((*CACHED, *CHUNKED), []),
    "neither": Case((*EAGER, "--no-enable-prefix-caching"), []),
    "LoRA, eager": Case((*EAGER, *LORA), []),
    "LoRA, compiled": Case(LORA, ["compilation"]),
    "no compilation": Case(("-cc.mode=0",), ["compilation"]),
    "no chunks": Case((*EAGER, "--no-enable-chunked-prefill"), []),
    "MLA, eager": Case(EAGER, [], mla=True),
    "MLA, compiled": Case((), [], mla=True),
    "MLA with both": Case(
        (*EAGER, *CACHED, *CHUNKED),
        [
            "--block-size",
            "--enable-chunked-prefill",
            "--enable-prefix-caching",
            "--max-num-batched-tokens",
        ],
        mla=True,
    ),
    "MLA with a cache alone": Case(
        (*EAGER, "--no-enable-prefix-caching", "--enable-prefix-caching"),
        ["--enable-prefix-caching"],
        mla=True,
    ),
    "MLA with few tokens": Case(
        (*EAGER, "--max-num-batched-tokens", "32"), ["--max-num-batched-tokens"], mla=True
    ),
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("models")
    models = {
        False: write_config(folder / "dense", DENSE),
        True: write_config(folder / "mla", small_config(n_routed_experts=8)),
    }
    bounds = ["--max-model-len", "256", "--max-num-seqs", "8"]
    return {name: [str(models[case.mla]), *bounds, *case.options] for name, case in CASES.items()}


@pytest.fixture(scope="module")
def logs(commands: dict[str, list[str]]) -> dict[str, str]:
    asked = json.dumps([*commands.values()])
    found = run_child(CONFIGURE, asked, VLLM_CONFIGURE_LOGGING="0")  # else it drops the handler
    return dict(zip(commands, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_vllm_turns_off_is_named(
    name: str, commands: dict[str, list[str]], logs: dict[str, str]
) -> None:
    case = CASES[name]
    if case.mla and case.off and torch.cpu._is_amx_tile_supported():
        # vLLM turns nothing off there, and logs nothing that could be read.
        pytest.skip("with AMX vLLM leaves both on")
    assert overruled(commands[name], logs[name]) == case.off


def test_a_log_without_a_configuration_is_a_failure() -> None:
    with pytest.raises(ValueError, match="no engine has logged its configuration"):
        overruled(["vllm", "serve", "model"], "INFO: started")
