"""Two ranks, or four, that build and load the real vLLM model, without a server.

They are data-parallel, unless tensor parallelism is asked for. Data-parallel ranks of a model with
experts are one world; replicas of a dense one are engines of their own. Four are tensor-parallel,
two and two in a decode-context group, or two engines of two.
"""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from forked import CONTEXT, forked

RANKS = 2

Ports = tuple[int, ...]
"""Free ones of loopback: where all meet, and then each engine's own."""


def _one_rank(
    rank: int,
    ports: Ports,
    model: str,
    keys: Any,
    sizes: tuple[int, int, int],
    inspect: Any,
    results: Any,
    end: Any,
) -> None:
    torch.set_num_threads(1)
    try:
        results.put((rank, inspect(rank, _config(rank, ports, model, keys, sizes)), None))
    except BaseException as error:
        results.put((rank, None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    end.wait()  # what a rank keeps for others is theirs to look at until all have looked


def _config(rank: int, ports: Ports, model: str, keys: Any, sizes: tuple[int, int, int]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    tp, dcp, dp = sizes
    config = EngineArgs(
        model=model,
        data_parallel_size=dp,
        tensor_parallel_size=tp,
        decode_context_parallel_size=dcp,
        **({"dcp_q_replicate": True} if dcp > 1 else {}),
        enforce_eager=True,
        additional_config=keys,
    ).create_engine_config()
    parallel = config.parallel_config
    engine, parallel.rank = divmod(rank, tp)
    if tp > 1:
        parallel._test_meeting = f"tcp://127.0.0.1:{ports[1 + engine]}"
        os.environ["VLLM_DIST_IDENT"] = str(ports[1 + engine])  # as vLLM's CPU worker does
    if dp == 1:
        return config
    parallel.data_parallel_index = engine
    parallel.data_parallel_master_ip = "127.0.0.1"
    if config.model_config.is_moe:
        parallel.data_parallel_rank = engine
        parallel._data_parallel_master_port_list = [ports[0]]
    else:  # as vLLM's engine process does
        parallel.data_parallel_master_port = ports[0]
        parallel.reconfigure_for_independent_dp_rank()
    return config


def load(config: Any, between: Callable[[torch.nn.Module], None]) -> torch.nn.Module:
    """The model, loaded as a worker loads it; `between` sees it constructed but without weights."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    load_weights = DefaultModelLoader.load_weights

    def looked_at(self: Any, model: torch.nn.Module, model_config: Any) -> None:
        between(model)
        load_weights(self, model, model_config)

    DefaultModelLoader.load_weights = looked_at
    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU worker does
    with set_current_vllm_config(config):
        join()
        return get_model(vllm_config=config)


def join() -> None:
    """Meet the other ranks in vLLM's world, as a worker does; in a configuration's context."""
    from vllm.config import get_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    parallel = get_current_vllm_config().parallel_config
    tp, alone = parallel.tensor_parallel_size, f"file://{tempfile.mkdtemp()}/store"
    meeting = getattr(parallel, "_test_meeting", alone)
    init_distributed_environment(tp, parallel.rank, meeting, parallel.rank, "gloo")
    dcp = parallel.decode_context_parallel_size
    ensure_model_parallel_initialized(tp, 1, decode_context_model_parallel_size=dcp)


def run_engines(
    model: Path,
    sharding: Any,
    inspect: Callable[[int, Any], Any],
    *,
    tp: int = 1,
    dcp: int = 1,
    dp: int | None = None,
    **beside: Any,
) -> list[Any]:
    """What `inspect(rank, config)` returns on each rank; a rank's error as its text.

    `sharding` is the value of the key `layer_sharding`, or None; `beside` are keys beside it.
    """
    keys = beside if sharding is None else {"layer_sharding": sharding, **beside}
    dp = dp or max(1, RANKS // tp)
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(1 + dp)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = tuple(probe.getsockname()[1] for probe in probes)
    results = CONTEXT.SimpleQueue()
    ranks, sizes = dp * tp, (tp, dcp, dp)
    end = CONTEXT.Barrier(ranks)
    processes = [
        forked(_one_rank, rank, ports, str(model), keys, sizes, inspect, results, end)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = sorted((results.get() for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join(30)
        process.kill()
    return [value if error is None else error for _, value, error in found]
