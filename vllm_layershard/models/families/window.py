"""The sliding window that vLLM gives every layer of a model whose class reads none itself."""

from __future__ import annotations

from vllm_layershard.models.sources.config_file import ConfigFile


def window_of_all(config: ConfigFile, *, switched: bool = False) -> int | None:
    """The window in tokens; None: every layer looks back at all.

    `switched`: the config class drops it unless `use_sliding_window` is true. A list of kinds with
    any other than sliding layers takes it from all. Source: vLLM 0.32, engine/arg_utils.py,
    `create_engine_config`; `Attention` takes the cache's window where the model gives none.

    Raises:
        ModelError: a value of another kind.
    """
    if switched and not config.boolean("use_sliding_window"):
        return None
    window = config.optional_integer("sliding_window", low=0, high=1 << 30)
    if any(kind != "sliding_attention" for kind in config.strings("layer_types")):
        return None
    return window or None  # 0 is none, too
