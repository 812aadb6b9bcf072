"""The entry point `layershard_cpu_dp`: data parallelism of MoE models on vLLM's CPU backend.

It stands apart from layer sharding and acts without it; `VLLM_PLUGINS`, an
allow-list of all plugins, leaves it out unless it names it.
"""

from __future__ import annotations

MODULES = (
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.model_executor.layers.fused_moe.runner.moe_runner",
)
"""What hosts/cpu_dp.py patches. vLLM imports them where it needs them."""


def register() -> None:
    """Have the modules patched once vLLM imports them, on a CPU. Called by vLLM; imports none.

    Never raises: a server that needs none of it goes on without.
    """
    from functools import partial

    from vllm_layershard.hosts.after_import import after_import

    for name in MODULES:
        after_import(name, partial(_patch, name))


def _patch(module: str) -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm_layershard.hosts.cpu_dp import install

        install(module)
