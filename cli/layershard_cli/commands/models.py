"""`layershard models`: what can be planned by name, and which architectures from a config.json."""

from __future__ import annotations

from layershard_cli.flags import AsJson
from layershard_cli.output import emit, emit_json
from vllm_layershard.planner.loaded_model import list_models


def models_command(as_json: AsJson = False) -> None:
    """The models that come with the planner, and the architectures that it knows.

    Example: layershard models
    """
    result = list_models()
    if as_json:
        emit_json(result.document())
        return
    width = max(len(model.name) for model in result.models)
    emit(f"{'model':{width}}  layers  parameters  quantization")
    for model in result.models:
        emit(
            f"{model.name:{width}}  {model.num_layers:>6}  {model.parameters / 1e9:>8,.1f} B  "
            f"{model.quantization}"
        )
    emit(f"Architectures, from any config.json or Hub name: {', '.join(result.architectures)}")
