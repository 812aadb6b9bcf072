"""Proves that no source states a quantisation: nothing in a config, and no file beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from vllm_layershard.models.quantization.sections import unknown_sections
from vllm_layershard.models.quantization.statements import statements
from vllm_layershard.models.sources.beside import (
    BY_HAND,
    DESCRIPTION,
    HF_QUANT,
    PARAMS,
    READ_WITH_A_FLAG,
    Beside,
    listed,
)
from vllm_layershard.models.sources.config_file import (
    MAX_FILE_BYTES,
    ConfigFile,
    parse_config,
    shown,
)

_FILE: Final = re.compile(
    r"quant(?!um)|gptq|awq|modelopt|auto.?round|compressed.?tensors|bnb|hqq|nncf|inc_config|"
    r"(?<![a-z0-9])((nv|mx)?fp[468]|int[48]|exl[23]|nf4|e[45]m[23]|q[1-8]_[01k]|"
    r"w[1-8]a(fp)?(4|8|16)|[1-8]-?bit)(?![a-z0-9])|"
    r"^q_?config|svdq|quark|^output(-\d+-of-\d+)?\.safetensors"
)
"""A name of a file that states a quantisation, or holds quantised weights. Output: EXL2's."""

_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")
_TORCH: Final = (".bin", ".pt")
"""Weights that vLLM reads where none of `_WEIGHTS` are."""

_PICKLED: Final = ".pth"
"""Weights that vLLM does not read, and whose names tell of a quantisation."""

_OTHERS: Final = re.compile(
    r"^(?:openvino_|mlc-|params_shard_|ndarray-cache|genai_config|ort_config)|"
    r"\.(?:gguf|ggml|onnx|engine|tflite|pte|rkllm|mlpackage)$"
)
"""Files of OpenVINO, MLC, ONNX Runtime, llama.cpp and others."""

_OF_TRAINING: Final = (
    *("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"),
)
"""Files that vLLM leaves out of the weights."""

_ELSEWHERE: Final = ("transformers.js_config",)
"""Sections that speak of another engine's files: SmolLM2's, of ONNX. Alone those are refused."""

_MAX_RECIPES: Final = 8
"""Each is a request, where the Hub has them."""

_KINDS: Final = (".json", ".yaml", ".yml", ".toml", *_WEIGHTS)
_STEPS: Final = re.compile(
    rb"quant|gptq|awq|autoround|num_bits|config_groups|(?:nv|mx)fp[48]|w[1-8]a(?:4|8|16)"
)
"""What a recipe of llm-compressor says of a quantisation; recipes of a training say nothing."""


def require_none(config: ConfigFile, beside: Beside) -> None:
    """Refuse a model of which anything says that it is quantised.

    Raises:
        ModelError: names the key or the file.
        UnknownModelError: the Hub was asked for a file or a list and cannot be reached.
    """
    kept = {key: value for key, value in config.values.items() if key not in _ELSEWHERE}
    config = ConfigFile(config.where, kept)
    _require_no_word(config)
    _require_known_sections(config)
    names = listed(beside)
    if names is None:
        for file in BY_HAND:
            _require_silent(config, beside, file)
    else:
        _require_silent_files(config, beside, names)
    if names is None or (PARAMS in names and not _has_safetensors(names)):
        contents = beside(PARAMS, MAX_FILE_BYTES)
        if contents is not None:
            _require_no_word(parse_config(contents.raw, contents.where))


def _require_silent_files(config: ConfigFile, beside: Beside, names: Sequence[str]) -> None:
    """Refuse files whose names, or as recipes whose contents, speak of a quantisation."""
    if not any(_is_read(file) for file in names):
        _require_no_others(config, listed(beside, deep=True) or ())
    kinds = _KINDS if _has_safetensors(names) else (*_KINDS, *_TORCH, _PICKLED)
    suspects = [file for file in names if file in BY_HAND or _is_suspect(file, kinds)]
    recipes = [file for file in suspects if _is_recipe(file.lower())]
    for file in sorted({*suspects} - {*recipes}):
        _require_silent(config, beside, file)
    if len(recipes) > _MAX_RECIPES:
        config.fail(
            "quantization_config",
            f"is missing, and one of {len(recipes)} recipes beside it may state a quantisation, "
            f"such as {shown(recipes[0])}: only {_MAX_RECIPES} are read; take some away",
        )
    for file in recipes:
        _require_silent(config, beside, file)


def _has_safetensors(names: Sequence[str]) -> bool:
    """Whether vLLM reads these, and no files of torch beside them."""
    return any(file.endswith(".safetensors") for file in names)


def _require_no_word(config: ConfigFile) -> None:
    for path, value in statements(config.values):
        config.fail(
            path,
            f"{shown(value)} speaks of a quantisation where vLLM 0.32 reads none, so no source "
            "states the bytes of its weights; move it to quantization_config, or take it out if "
            "they are not quantised",
        )


def _require_known_sections(config: ConfigFile) -> None:
    for path, value in unknown_sections(config.values):
        config.fail(
            path,
            f"{shown(value)} is a section that no config class of this model has, and it may state "
            "how the weights are stored; move a quantisation to quantization_config, or take the "
            "section out if it states none",
        )


def _is_read(file: str) -> bool:
    """Whether it has weights that vLLM reads, or says where they lie.

    Source: vLLM 0.32, model_loader/default_loader.py, `_prepare_weights`; weight_utils.py,
    `filter_files_not_needed_for_inference`.
    """
    if file.endswith(_OF_TRAINING) or _OTHERS.search(file.lower()):
        return False
    return file.endswith((*_WEIGHTS, *_TORCH, ".bin.index.json"))


def _require_no_others(config: ConfigFile, names: Sequence[str]) -> None:
    """Refuse another engine's weights where none are that vLLM reads."""
    for file in names:
        if _OTHERS.search(file.lower().rpartition("/")[2]):
            config.fail(
                "quantization_config",
                f"is missing, and {shown(file)} belongs to another engine's weights, where none "
                "are that vLLM 0.32 reads; plan the model that they were made of, or take it away",
            )


def _is_suspect(file: str, kinds: tuple[str, ...]) -> bool:
    """Whether a name speaks of a quantisation, or is that of a recipe. `kinds`: how it may end."""
    name = file.lower()
    return name.endswith(kinds) and (_FILE.search(name) is not None or _is_recipe(name))


def _is_recipe(name: str) -> bool:
    return "recipe" in name and name.endswith((".yaml", ".yml", ".json"))


def _require_silent(config: ConfigFile, beside: Beside, file: str) -> None:
    """Refuse a file that is there, unless it is a recipe that says nothing of a quantisation."""
    name = file.lower()
    if name.endswith((*_WEIGHTS, *_TORCH, _PICKLED)):
        where = shown(file)
    else:
        contents = beside(file, MAX_FILE_BYTES)
        if contents is None or (_is_recipe(name) and not _STEPS.search(contents.raw.lower())):
            return
        where = contents.where
    if name.startswith(DESCRIPTION.removesuffix(".json")):
        read = f"vllm-ascend reads under the name {DESCRIPTION} alone; give it that name"
    elif name.endswith(HF_QUANT):
        read = f"vLLM 0.32 reads under the name {HF_QUANT} alone; give it that name"
    elif file in READ_WITH_A_FLAG:
        read = "vLLM 0.32 reads only with --quantization; copy it into config.json"
    else:
        read = "vLLM 0.32 does not read; state it in config.json"
    config.fail(
        "quantization_config",
        f"is missing, and {where} states a quantisation that {read}, or take the file away if the "
        "weights are not quantised",
    )
