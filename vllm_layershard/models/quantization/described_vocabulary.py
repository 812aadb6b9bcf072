"""The embedding and the head, which a description of ModelSlim's has to name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.methods.ascend import described_by
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.config_file import ConfigFile

_NAMELESS: Final = ""

EMBEDDINGS: Final[Mapping[str, str]] = {
    "BailingMoeV2ForCausalLM": "word_embeddings",
    "DeepseekV2ForCausalLM": "embed_tokens",
    "DeepseekV3ForCausalLM": "embed_tokens",
    "DeepseekV32ForCausalLM": "embed_tokens",
    "Glm4MoeLiteForCausalLM": "embed_tokens",
    "GlmMoeDsaForCausalLM": "embed_tokens",
    "KimiK25ForConditionalGeneration": "embed_tokens",
    "LlamaForCausalLM": _NAMELESS,
    "MiniMaxM2ForCausalLM": "embed_tokens",
    "Ministral3ForCausalLM": _NAMELESS,
    "MistralForCausalLM": _NAMELESS,
    "Qwen2ForCausalLM": "embed_tokens",
    "Qwen3ForCausalLM": "embed_tokens",
    "Qwen3MoeForCausalLM": "embed_tokens",
    "Qwen3VLForConditionalGeneration": "embed_tokens",
    "Qwen3VLMoeForConditionalGeneration": "embed_tokens",
}
"""What vLLM's classes call the embedding that they build with a `quant_config`; others do without.

Source: vLLM 0.32, the classes of models; every truth case compares its class with it.
"""


def asked_embedding(architecture: str, stem: str) -> str | None:
    """The name by which vLLM asks for the format of an embedding; None: it does not ask.

    `stem` is the name of the list of decoder layers.
    """
    name = EMBEDDINGS.get(architecture)
    return f"{stem.removesuffix('layers')}{name}" if name else name


def require_vocabulary(section: ConfigFile, architecture: str, stem: str, head: str | None) -> None:
    """Ask for both as vLLM's class does. `head`: None where it does not ask for it.

    A tied head is asked for, too: vLLM builds one and gives it the embedding's weight. (0.27.1
    built none in its classes of Qwen2, Qwen3, Qwen3-VL, Qwen3.5 and Ling; 0.29 builds them.)
    Source: vllm-ascend 182b75e, quantization/modelslim_config.py, `get_quant_method` and
    `is_layer_skipped_ascend`; vLLM 0.32, the classes of models.

    Raises:
        ModelError: the description does not name it, or with an unknown precision.
    """
    described = described_by(section, names_of(architecture))
    embedding = asked_embedding(architecture, stem)
    if embedding:
        described.linear(embedding)
    elif embedding == _NAMELESS and not described.plain:
        module = f"{stem.removesuffix('layers')}embed_tokens"
        raise ModelError(
            f"{module}: {DESCRIPTION} states FLOAT for no weight, and vllm-ascend 182b75e ends at "
            "the start where none is: vLLM's class asks for its embedding without a name; add "
            f"{module}.weight to the file, as FLOAT"
        )
    if head is not None:
        described.linear(head)
