"""Layer sharding for vLLM: one copy of a linear weight per group, moved ahead of its use.

The public names are those of `__all__`; docs/library.md shows them at work. Importing this package
imports neither torch nor vllm nor pydantic, nor any module of its own: a name is imported when it
is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm_layershard.config import LayerShardConfig
    from vllm_layershard.errors import (
        ConfigError,
        HardwareError,
        HostError,
        LayerShardError,
        MismatchError,
        ModelError,
        NodeError,
        PlanError,
        ReloadError,
        TransportError,
        UnknownModelError,
    )
    from vllm_layershard.estimate.hardware import Hardware
    from vllm_layershard.planner.comparison import compare_layouts
    from vllm_layershard.planner.hardware import HardwareResult, list_hardware, load_hardware
    from vllm_layershard.planner.layer_map import map_layers
    from vllm_layershard.planner.layout import Layout
    from vllm_layershard.planner.loaded_model import (
        LoadedModel,
        ModelsResult,
        list_models,
        load_model,
    )
    from vllm_layershard.planner.plan import plan_model
    from vllm_layershard.planner.results.compare_result import (
        CompareResult,
        LayoutCapacity,
        RefusedLayout,
    )
    from vllm_layershard.planner.results.map_result import MapResult
    from vllm_layershard.planner.results.plan_result import PlanResult
    from vllm_layershard.version import __version__

__all__ = [
    "CompareResult",
    "ConfigError",
    "Hardware",
    "HardwareError",
    "HardwareResult",
    "HostError",
    "LayerShardConfig",
    "LayerShardError",
    "Layout",
    "LayoutCapacity",
    "LoadedModel",
    "MapResult",
    "MismatchError",
    "ModelError",
    "ModelsResult",
    "NodeError",
    "PlanError",
    "PlanResult",
    "RefusedLayout",
    "ReloadError",
    "TransportError",
    "UnknownModelError",
    "__version__",
    "compare_layouts",
    "list_hardware",
    "list_models",
    "load_hardware",
    "load_model",
    "map_layers",
    "plan_model",
]

_HOMES: Final = {
    "config": ("LayerShardConfig",),
    "errors": (
        "ConfigError",
        "HardwareError",
        "HostError",
        "LayerShardError",
        "MismatchError",
        "ModelError",
        "NodeError",
        "PlanError",
        "ReloadError",
        "TransportError",
        "UnknownModelError",
    ),
    "estimate.hardware": ("Hardware",),
    "planner.comparison": ("compare_layouts",),
    "planner.hardware": ("HardwareResult", "list_hardware", "load_hardware"),
    "planner.layer_map": ("map_layers",),
    "planner.layout": ("Layout",),
    "planner.loaded_model": ("LoadedModel", "ModelsResult", "list_models", "load_model"),
    "planner.plan": ("plan_model",),
    "planner.results.compare_result": ("CompareResult", "LayoutCapacity", "RefusedLayout"),
    "planner.results.map_result": ("MapResult",),
    "planner.results.plan_result": ("PlanResult",),
    "version": ("__version__",),
}
"""Each module below this package that defines public names, and those names."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module, the first time that it is asked for."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and what a module has anyway."""
    return sorted({*globals(), *__all__})
