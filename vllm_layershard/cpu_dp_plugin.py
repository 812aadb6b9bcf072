"""The entry point `layershard_cpu_dp`: data parallelism of MoE models on vLLM's CPU backend.

It stands apart from layer sharding and acts without it; `VLLM_PLUGINS`, an
allow-list of all plugins, leaves it out unless it names it.
"""


def register() -> None:
    """Add what the CPU backend lacks; nothing on any other platform. Called by vLLM."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm_layershard.hosts.cpu_dp import install

        install()
