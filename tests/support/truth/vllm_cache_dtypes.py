"""Run as a script: asks vLLM's own classes which cache a checkpoint's quantisation asks for.

Input: a JSON object of directories by name; output: one JSON object by name: the cache dtype once
the model is built, or null where vLLM refuses it.
"""

import json
import sys
import tempfile

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from truth.vllm_inventory import stand_in_for_kernels


def main() -> None:
    directories = json.load(sys.stdin)
    stand_in_for_kernels()
    stand_in_for_backends()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps({name: chosen(directories[name], scratch) for name in directories}))


def stand_in_for_backends() -> None:
    """Backends of this machine's CPU take no eight-bit cache; which one runs is not asked here."""
    choose = type(current_platform).get_attn_backend_cls

    def wide(*args: object, attn_selector_config: object, **kwargs: object) -> str:
        config = attn_selector_config._replace(kv_cache_dtype="auto")
        return str(choose(*args, attn_selector_config=config, **kwargs))

    type(current_platform).get_attn_backend_cls = staticmethod(wide)


def chosen(directory: str, scratch: str) -> str | None:
    try:
        config = EngineArgs(
            model=directory, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True
        ).create_engine_config()
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
                initialize_model_parallel()
                parallel_state._EP = parallel_state._EP or parallel_state._DP
            with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
                initialize_model(config)
    except (NotImplementedError, ValueError) as refused:  # vLLM's two ways to refuse a model
        print(f"{directory}: {refused}", file=sys.stderr)
        return None
    return str(config.cache_config.cache_dtype)


if __name__ == "__main__":
    main()
