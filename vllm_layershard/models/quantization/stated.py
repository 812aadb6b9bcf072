"""Which source states how a model is quantised: the one place that may say that none does."""

from __future__ import annotations

from vllm_layershard.models.sources.beside import (
    DESCRIPTION,
    HF_QUANT,
    MAX_DESCRIPTION_BYTES,
    Beside,
)
from vllm_layershard.models.sources.config_file import (
    MAX_FILE_BYTES,
    ConfigFile,
    parse_config,
)


def stated_section(config: ConfigFile, beside: Beside) -> ConfigFile | None:
    """The section that vLLM reads, or None where no source states a quantisation.

    The order is vLLM's: config.json's own, which params.json of Mistral's format is before;
    hf_quant_config.json; the language model's; last what ModelSlim describes for vllm-ascend.
    Source: vLLM 0.32, transformers_utils/config.py, `get_config`, and
    model_arch_config_convertor.py, `get_quantization_config`.

    Raises:
        ModelError: something states a quantisation where nobody reads it.
        UnknownModelError: the Hub was asked for a file beside config.json and cannot be reached.
    """
    section = config.section("quantization_config") or _beside(beside, HF_QUANT)
    if section is not None and _lacks_layers(section):
        section = _with_layers(section, beside)
    if section is None:
        section = config.section("compression_config") or _of_language_model(config)
    method = section.get("quant_method") if section is not None else None
    if section is None or (isinstance(method, str) and method.lower() == "ascend"):
        contents = beside(DESCRIPTION, MAX_DESCRIPTION_BYTES)
        if contents is not None:
            from vllm_layershard.models.quantization.methods.modelslim import described

            return described(contents.raw, contents.where, config)
    if section is None:
        from vllm_layershard.models.quantization.proof import require_none

        require_none(config, beside)
    return section


def _lacks_layers(section: ConfigFile) -> bool:
    """Whether modelopt states a precision for each layer, and states the layers elsewhere."""
    method, algorithm = section.get("quant_method"), section.get("quant_algo")
    return (
        isinstance(method, str)
        and method.lower().startswith("modelopt")
        and isinstance(algorithm, str)
        and algorithm.upper() == "MIXED_PRECISION"
        and "quantized_layers" not in section.values
    )


def _with_layers(section: ConfigFile, beside: Beside) -> ConfigFile:
    """With what hf_quant_config.json states of the layers; what it says of the cache is not read.

    Source: vLLM 0.32, model_loader/weight_utils.py, `get_quant_config`; of the cache
    utils/torch_utils.py, `resolve_kv_cache_dtype_string`, which looks at config.json's section.

    Raises:
        ModelError: the file is of another producer, or says nothing of them.
    """
    file = _beside(beside, HF_QUANT)
    if file is None:
        return section
    producer, inner = file.section("producer"), file.section("quantization")
    if producer is None or producer.get("name") != "modelopt" or inner is None:
        file.fail("producer", "is not named 'modelopt', and vLLM 0.32 reads no other's layers here")
    of_layers = {
        key: value for key, value in inner.values.items() if not key.startswith("kv_cache")
    }
    return ConfigFile(file.where, {**section.values, "quantization": of_layers})


def _of_language_model(config: ConfigFile) -> ConfigFile | None:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return None
    inner = ConfigFile(f"{config.where}: text_config", text)
    return inner.section("quantization_config") or inner.section("compression_config")


def _beside(beside: Beside, file: str) -> ConfigFile | None:
    contents = beside(file, MAX_FILE_BYTES)
    return parse_config(contents.raw, contents.where) if contents is not None else None
