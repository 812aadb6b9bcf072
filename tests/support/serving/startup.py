"""Run as a script: starts vLLM's real engine with empty weights, and stops it again.

Arguments: the model's directory, tp, dp. What it prints is vLLM's own log.
"""

from __future__ import annotations

import asyncio
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM


async def start(directory: str, tp: int, dp: int) -> None:
    """Ready, and gone."""
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
            max_model_len=256,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            tensor_parallel_size=tp,
            data_parallel_size=dp,
        )
    )
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
