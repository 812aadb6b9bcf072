"""What layer sharding replaces in vLLM: two symbols, each inert for a config without our keys.

docs/patches.md has all that is replaced. Others stand beside what needs them:
- reload/guard.py: two, in a worker whose model is sharded;
- graphs/peers.py: three, in a worker whose model is sharded on GPUs;
- reload/process_checkpoints.py: one, in a worker whose model is sharded;
- graphs/fusions.py: one, in a worker whose model vLLM compiles itself;
- graphs/inductor.py: one of torch, in a worker whose model is compiled;
- exchange/construction.py: one, while a model with a token exchange is built;
- cpu_dp.py: three, for data parallelism on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_layershard.config import KEY
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.hosts.patch import Patch, install_or_warn


def _checking_config(original: Callable[..., None]) -> Callable[..., None]:
    def __post_init__(self: Any) -> None:
        original(self)
        extra = self.additional_config
        if isinstance(extra, dict) and (KEY in extra or FFN_KEY in extra):
            install()  # where only its name asked for it, a symbol may be lacking so far
            from vllm_layershard.hosts.ffn.settings import check_ffn
            from vllm_layershard.hosts.settings import check

            check_ffn(self)
            check(self)

    return __post_init__


def _sharding_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_model(vllm_config: Any, *, model_config: Any = None, **kwargs: Any) -> Any:
        from vllm_layershard.hosts.ffn.settings import ffn_requested
        from vllm_layershard.hosts.settings import is_served_model, requested

        def construct() -> Any:
            return original(vllm_config, model_config=model_config, **kwargs)

        def is_other() -> bool:
            return model_config is not vllm_config.model_config or not is_served_model(model_config)

        config, ffn = requested(vllm_config), ffn_requested(vllm_config)
        if (config is None and ffn is None) or is_other():
            return construct()
        from vllm_layershard.hosts.graphs.inductor import remember_writers

        remember_writers(vllm_config)
        if config is not None:
            from vllm_layershard.hosts.model import build

            return build(config, vllm_config, construct, ffn)
        assert ffn is not None
        from vllm_layershard.hosts.ffn.model import build_split

        return build_split(ffn, vllm_config, construct)

    return initialize_model


PATCHES = (
    Patch(
        module="vllm.config",
        owner="VllmConfig",
        attribute="__post_init__",
        versions="0.29 to 0.33",
        reason="vLLM does not check additional_config; a bad value must stop the API-server "
        "process before a worker starts",
        removal="vLLM offers plugins a hook to validate additional_config",
        wrap=_checking_config,
    ),
    Patch(
        module="vllm.model_executor.model_loader.base_loader",
        owner="",
        attribute="initialize_model",
        versions="0.29 to 0.33",
        reason="the model's linears must be known, planned and released between their "
        "construction and the loading of weights",
        removal="vLLM offers plugins a hook between model construction and weight loading",
        wrap=_sharding_model,
    ),
)


def install() -> None:
    """Install every patch of layer sharding in this process. Re-entrant.

    Raises:
        HostError: this version of vLLM lacks a symbol; then nothing is replaced.
    """
    for patch in PATCHES:
        patch.original()
    for patch in PATCHES:
        patch.install()


def install_what_there_is() -> None:
    """The same in a process that may never be given the key: what is lacking is warned of once."""
    for patch in PATCHES:
        install_or_warn(patch, "layer sharding")
