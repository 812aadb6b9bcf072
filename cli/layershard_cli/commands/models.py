"""`layershard models`: what can be planned by name, and which architectures from a config.json."""

from __future__ import annotations

from layershard_cli.flags import AsJson
from layershard_cli.output import emit, emit_json
from vllm_layershard.models import bundled_names, load_model, supported


def models_command(as_json: AsJson = False) -> None:
    """The models that come with the planner, and the architectures that it knows.

    Example: layershard models
    """
    models = [load_model(name) for name in bundled_names()]
    if as_json:
        emit_json(
            {
                "schema_version": 1,
                "models": [
                    {
                        "name": model.name,
                        "architecture": model.architecture,
                        "num_layers": model.num_layers,
                        "parameters": model.parameters,
                        "dtype": model.dtype,
                        "quantization": model.quantization,
                    }
                    for model in models
                ],
                "architectures": list(supported()),
            }
        )
        return
    width = max(len(model.name) for model in models)
    emit(f"{'model':{width}}  layers  parameters  quantization")
    for model in models:
        emit(
            f"{model.name:{width}}  {model.num_layers:>6}  {model.parameters / 1e9:>8,.1f} B  "
            f"{model.quantization}"
        )
    emit(f"Architectures, from any config.json or Hub name: {', '.join(supported())}")
