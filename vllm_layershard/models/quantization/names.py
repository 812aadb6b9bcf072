"""How vLLM calls the modules that a checkpoint names, a row an architecture.

A test compares every row with the class of vLLM 0.32 (`hf_to_vllm_mapper`,
`packed_modules_mapping`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

Fused = Mapping[str, tuple[str, ...]]
"""vLLM's name of a fused linear -> the names of its parts in a checkpoint."""

QKV: Final[Fused] = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
GATE_UP: Final[Fused] = {"gate_up_proj": ("gate_proj", "up_proj")}
LATENT: Final[Fused] = {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
DELTA_NET: Final[Fused] = {
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
FUSED: Final[Fused] = {**GATE_UP, **QKV, **LATENT, **DELTA_NET}
"""The linears that a checkpoint may store by their parts."""

_USUAL: Final[Fused] = {**QKV, **GATE_UP}
_DEEPSEEK: Final[Fused] = {**GATE_UP, **LATENT}
_NUMBERED: Final = ("w1", "w3", "w2")
"""What Mixtral and MiniMax call an expert's gate, up and down."""

_QWEN_VL: Final = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)


class Names(NamedTuple):
    """What one class of vLLM renames, and what it fuses. `expert`: a routed expert's matrices.

    `renames`: whether the class has a mapper, be it one without a rename. `prefixes`,
    `substrings` and `suffixes` are pairs: a checkpoint's, vLLM's.
    """

    fused: Fused = _USUAL
    renames: bool = False
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    substrings: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    suffixes: tuple[tuple[str, str], ...] = ()

    def of(self, name: str) -> str:
        """vLLM's name of a checkpoint's.

        Source: vLLM 0.32, models/utils.py, `WeightsMapper.map_name`.
        """
        for theirs, ours in self.substrings:
            name = name.replace(theirs, ours, 1)
        for theirs, ours in self.prefixes:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        for theirs, ours in self.suffixes:
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        return name

    def first_expert(self, prefix: str) -> tuple[str, ...]:
        """The matrices of the first routed expert of a layer, as a checkpoint names them."""
        return tuple(f"{prefix}.0.{part}" for part in self.expert)

    def parts(self, prefix: str) -> tuple[str, ...]:
        """The parts of a fused linear by their whole names; () of one that is not fused.

        vLLM replaces the name wherever it stands in the prefix.
        """
        last = prefix.rpartition(".")[2]
        return tuple(prefix.replace(last, part) for part in self.fused.get(last, ()))


_QWEN35: Final = Names(
    {**_USUAL, **DELTA_NET}, renames=True, prefixes=(("model.language_model.", "model."),)
)

_NAMES: Final[Mapping[str, Names]] = {
    "DeepseekV2ForCausalLM": Names(_DEEPSEEK),
    "DeepseekV3ForCausalLM": Names(_DEEPSEEK),
    "DeepseekV32ForCausalLM": Names(_DEEPSEEK),
    "GlmMoeDsaForCausalLM": Names(_DEEPSEEK),
    "Glm4MoeLiteForCausalLM": Names(_DEEPSEEK),
    "LlamaForCausalLM": Names(renames=True),
    "MistralForCausalLM": Names(renames=True),
    "Ministral3ForCausalLM": Names(renames=True),
    "Qwen2ForCausalLM": Names(renames=True),
    "Qwen3ForCausalLM": Names(renames=True),
    # Their class adds the parts of its dense layers only when the quant config has its own copy.
    "Qwen3MoeForCausalLM": Names(QKV, renames=True),
    "Qwen3VLForConditionalGeneration": Names(renames=True, prefixes=_QWEN_VL),
    "Qwen3VLMoeForConditionalGeneration": Names(QKV, renames=True, prefixes=_QWEN_VL),
    "MixtralForCausalLM": Names(
        QKV,
        renames=True,
        substrings=(
            (".gate_proj.", ".w1."),
            (".up_proj.", ".w3."),
            (".down_proj.", ".w2."),
        ),
        expert=_NUMBERED,
    ),
    "MiniMaxM2ForCausalLM": Names(QKV, renames=True, expert=_NUMBERED),
    "BailingMoeV2ForCausalLM": Names({"query_key_value": ("query_key_value",), **GATE_UP}),
    "KimiK25ForConditionalGeneration": Names(
        _DEEPSEEK,
        renames=True,
        prefixes=(
            ("language_model.layers.", "language_model.model.layers."),
            ("mm_projector.proj.0", "mm_projector.linear_1"),
            ("mm_projector.proj.2", "mm_projector.linear_2"),
        ),
    ),
    "Qwen3NextForCausalLM": Names(
        {**_USUAL, "in_proj_qkvz": ("in_proj_qkvz",), "in_proj_ba": ("in_proj_ba",)}, renames=True
    ),
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5MoeForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": _QWEN35._replace(prefixes=_QWEN_VL),
    "Qwen3_5MoeForConditionalGeneration": _QWEN35._replace(prefixes=_QWEN_VL),
    "GptOssForCausalLM": Names(
        QKV,
        renames=True,
        substrings=((".self_attn.", ".attn."),),
        suffixes=(
            (".embed_tokens.weight", ".embedding.weight"),
            (".gate_up_proj_blocks", ".w13_weight"),
            (".down_proj_blocks", ".w2_weight"),
            (".gate_up_proj_scales", ".w13_weight_scale"),
            (".down_proj_scales", ".w2_weight_scale"),
            (".gate_up_proj", ".w13_weight"),
            (".down_proj", ".w2_weight"),
            (".gate_up_proj_bias", ".w13_bias"),
            (".down_proj_bias", ".w2_bias"),
            (".gate_up_proj.weight", ".w13_weight"),
            (".gate_up_proj.weight_scale", ".w13_weight_scale"),
            (".gate_up_proj.bias", ".w13_bias"),
            (".gate_up_proj.input_scale", ".w13_input_scale"),
            (".down_proj.weight", ".w2_weight"),
            (".down_proj.weight_scale", ".w2_weight_scale"),
            (".down_proj.bias", ".w2_bias"),
            (".down_proj.input_scale", ".w2_input_scale"),
        ),
    ),
}


def names_of(architecture: str) -> Names:
    """The row of an architecture; the usual fused linears and no rename where it has none."""
    return _NAMES.get(architecture, Names())
