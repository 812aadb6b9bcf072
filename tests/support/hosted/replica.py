"""Replica: one of two real vLLM engines of a dense model, in a process of its own, that answers.

Unlike those of one `vllm serve`, which lives and dies as a whole, each is a launch of its own and
can be started and killed by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked import CONTEXT, forked

REPLICAS = 2
MAX_TOKENS = 24
DEADLINE_S = 240

ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

Said = tuple[tuple[int, ...], tuple[float, ...]]
"""Greedy token ids, and the logprob of each."""


class Replica:
    """A context; gone on exit, by SIGKILL. `sharding` None: an engine alone, without the key.

    `port` is what the replicas of one deployment have in common.
    """

    def __init__(self, model: Path, rank: int, port: int, sharding: Any) -> None:
        self.rank = rank
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = forked(_serve, theirs, str(model), rank, port, sharding, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_until_ready(self) -> None:
        """Return when it is loaded; an error that ended it is raised here as a RuntimeError."""
        assert self._pipe.poll(DEADLINE_S), f"replica {self.rank} does not get ready"
        error = self._pipe.recv()
        if error is not None:
            raise RuntimeError(error)

    def begin(self, prompts: Sequence[list[int]]) -> None:
        """Give it questions."""
        self._pipe.send(list(prompts))

    def answers(self, count: int) -> dict[int, Said]:
        """`count` answers to what was begun, by the prompt's index; fewer if it is killed before.

        They come one by one, as they are found.
        """
        found: dict[int, Said] = {}
        try:
            while len(found) < count:
                assert self._pipe.poll(DEADLINE_S), f"replica {self.rank} does not answer"
                index, said = self._pipe.recv()
                found[index] = said
        except (EOFError, ConnectionResetError):
            pass
        return found

    def ask(self, prompts: Sequence[list[int]]) -> dict[int, Said]:
        """Its answers to all prompts."""
        self.begin(prompts)
        return self.answers(len(prompts))

    def kill(self) -> None:
        """Without a chance to clean up."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Any, model: str, rank: int, port: int, sharding: Any) -> None:
    os.environ |= ENVIRONMENT
    from vllm import SamplingParams

    try:
        engine = _engine(model, rank, port, sharding)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=1, ignore_eos=True)
    asked = 0
    while True:
        prompts = pipe.recv()
        for index, prompt in enumerate(prompts):
            engine.add_request(f"{asked}-{index}", {"prompt_token_ids": prompt}, greedy)
        asked += 1
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    pipe.send((int(output.request_id.split("-")[1]), _said(output.outputs[0])))


def _engine(model: str, rank: int, port: int, sharding: Any) -> Any:
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    torch.set_num_threads(1)
    config = EngineArgs(
        model=model,
        **({} if sharding is None else _apart(port)),
        distributed_executor_backend="uni",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        max_num_seqs=8,
        additional_config={} if sharding is None else {"layer_sharding": sharding},
    ).create_engine_config()
    parallel = config.parallel_config
    parallel.data_parallel_index = rank
    parallel.reconfigure_for_independent_dp_rank()
    return LLMEngine.from_vllm_config(config)


def _apart(port: int) -> dict[str, Any]:
    """One of several launches that make up a deployment, on one node."""
    return {
        "data_parallel_size": REPLICAS,
        "data_parallel_size_local": 1,
        "data_parallel_address": "127.0.0.1",
        "data_parallel_rpc_port": port,
    }


def _said(output: Any) -> Said:
    logprobs = tuple(
        entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    )
    return tuple(output.token_ids), logprobs
