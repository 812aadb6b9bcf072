"""Fields that a config leaves out: the class's value, or a refusal that names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import field_cases
from console import complaint
from sums import total
from truth.stated import MISTRAL_7B, QWEN3_5_27B, QWEN3_VL_4B, QWEN3_VL_30B_A3B
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, FoundModel, Model, model_of, read_model
from vllm_layershard.models.families.booleans import _AROUND, _BY_THE_CLASS, _CONDITIONS
from vllm_layershard.models.families.defaults import _BOOLEANS
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

ONE = Deployment(ParallelLayout())


def bundled(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_BUNDLED / f"{name}.json").read_text())
    return config


def read(config: dict[str, Any]) -> Model:
    return model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = config.get("text_config", config)
    return text


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With these values in its language model, and without those that are changed to ...."""
    text = {k: v for k, v in (text_of(config) | changes).items() if v is not ...}
    return config | {"text_config": text} if "text_config" in config else text


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != "quantization_config"}


def qwen3(hidden: int, heads: int, layers: int = 28, width: int = 3072) -> dict[str, Any]:
    """A Qwen3 of another size, whose heads do not share out its width."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers}
    return bundled("Qwen--Qwen3-32B") | sizes | {"intermediate_size": width}


def test_the_field_case_has_its_bytes() -> None:
    model = read_model(str(field_cases.PLACE / "qwen3-06b-no-head-dim"))
    assert model.weight_bytes(ONE, 0).total == 1_192_099_840
    assert model.kv_bytes_per_token("auto", range(28), ONE) == 114_688


MOE, LLAMA = bundled("Qwen--Qwen3-235B-A22B"), bundled("meta-llama--Meta-Llama-3.1-8B")
NEXT, QWEN35 = "Qwen--Qwen3-Next-80B-A3B-Instruct", "Qwen--Qwen3.5-397B-A17B"
HEADS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "Qwen3-0.6B": (qwen3(1024, 16), {"head_dim": 128}),
    "Qwen3-1.7B": (qwen3(2048, 16, 28, 6144), {"head_dim": 128}),
    "Qwen3-4B": (qwen3(2560, 32, 36, 9728), {"head_dim": 128}),
    "Qwen3-14B": (qwen3(5120, 40, 40, 17408), {"head_dim": 128}),
    "Qwen3-32B": (bundled("Qwen--Qwen3-32B"), {"head_dim": 128}),
    "Qwen3-VL": (dict(QWEN3_VL_4B), {"head_dim": 128}),
    "Qwen3-VL with experts": (dict(QWEN3_VL_30B_A3B), {"head_dim": 2048 // 32}),
    "Qwen3.5 with experts": (bundled(QWEN35), {"head_dim": 256}),
    "Qwen3.5": (dict(QWEN3_5_27B), {"head_dim": 256}),
    "Qwen3-MoE divides": (MOE, {"head_dim": 4096 // 64}),
    "Llama divides": (LLAMA, {"head_dim": 4096 // 32}),
    "Llama, other heads": (LLAMA | {"num_attention_heads": 64}, {"head_dim": 4096 // 64}),
    "Mistral divides": (dict(MISTRAL_7B), {"head_dim": 4096 // 32}),
    "Qwen3-MoE's keys": (MOE, {"num_key_value_heads": 4}),
    "Llama's keys": (LLAMA, {"num_key_value_heads": 32}),
    "Qwen3.5's keys": (bundled(QWEN35), {"num_key_value_heads": 2}),
    "Mistral's keys": (dict(MISTRAL_7B), {"num_key_value_heads": 8}),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_that_are_left_out_are_the_classs(case: str) -> None:
    config, expected = HEADS[case]
    model = read(changed(config, **dict.fromkeys(expected, ...)))
    written = changed(config, **expected)
    held = model.weight_bytes(ONE, 0).total
    assert held == pytest.approx(total(plain(written), lambda matrix: None), rel=1e-3)
    text = text_of(written)
    layers = [k != "linear_attention" for k in text.get("layer_types", ())] or [True] * 200
    full = sum(layers[: text["num_hidden_layers"]])
    width = text["num_key_value_heads"] * text.get("head_dim", 4096 // 32)
    cached = model.kv_bytes_per_token("bfloat16", range(model.num_layers), ONE)
    assert cached == full * 2 * width * 2


def test_null_is_not_left_out() -> None:
    config = changed(dict(QWEN3_VL_30B_A3B), head_dim=None)
    model, written = read(config), read(changed(config, head_dim=2048 // 32))
    assert model.weight_bytes(ONE, 0) == written.weight_bytes(ONE, 0)
    with pytest.raises(ModelError, match=": head_dim: is null, which is no value of this field"):
        read(qwen3(1024, 16) | {"head_dim": None})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Qwen--Qwen3-235B-A22B", "num_key_value_heads"),
        ("inclusionAI--Ling-1T", "num_key_value_heads"),
        ("meta-llama--Meta-Llama-3.1-8B", "attention_bias"),
        ("zai-org--GLM-4.7", "use_qk_norm"),
        ("Qwen--Qwen3-235B-A22B", "norm_topk_prob"),
        ("deepseek-ai--DeepSeek-V3", "index_topk"),
        ("Qwen--Qwen3.5-397B-A17B", "tie_word_embeddings"),
    ],
)
def test_a_null_that_is_no_value_is_refused(name: str, field: str) -> None:
    """The truth tests have all classes and all their fields."""
    with pytest.raises(ModelError, match=f": {field}: is null, which is no value of this field"):
        read(changed(bundled(name), **{field: None}))


@pytest.mark.parametrize("name", ["deepseek-ai--DeepSeek-V3", NEXT, "Qwen--Qwen3-32B", QWEN35])
@pytest.mark.parametrize("value", [None, False, 0])
def test_an_encoder_is_refused(name: str, value: object) -> None:
    with pytest.raises(ModelError, match=r": is_causal: is .*: an encoder keeps no cache"):
        read(changed(bundled(name), is_causal=value))
    read(changed(bundled(name), is_causal=True))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        (NEXT, "attn_output_gate", None),
        (QWEN35, "attn_output_gate", 0),
        ("deepseek-ai--DeepSeek-V3.2", "index_topk_freq", None),
        ("zai-org--GLM-5.2", "index_skip_topk_offset", None),
    ],
)
def test_what_vllm_calculates_with_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(ModelError, match=rf": {field}: .* vLLM 0\.32 calculates with it"):
        read(changed(bundled(name), **{field: value}))


def test_what_it_does_not_calculate_with_beside_a_pattern_may_be_null() -> None:
    config = bundled("deepseek-ai--DeepSeek-V3.2")
    pattern = {"index_topk_pattern": "F" * config["num_hidden_layers"]}
    nulls = {"index_topk_freq": None, "index_skip_topk_offset": None}
    stated = read(changed(config, **pattern, **nulls))
    assert stated.blueprint.layers == read(changed(config, **pattern)).blueprint.layers


def test_a_null_count_of_draft_layers_is_none() -> None:
    for name, field in {
        NEXT: "num_nextn_predict_layers",
        QWEN35: "mtp_num_hidden_layers",
    }.items():
        assert read(changed(bundled(name), **{field: None})).blueprint.drafts == (
            read(changed(bundled(name), **{field: 0})).blueprint.drafts
        )


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("deepseek-ai--DeepSeek-V3", "tie_word_embeddings", "true"),
        ("deepseek-ai--DeepSeek-V3", "norm_topk_prob", 1),
        ("zai-org--GLM-5", "tie_word_embeddings", 1),
        ("meituan-longcat--LongCat-Flash-Chat", "attention_bias", "false"),
        ("meta-llama--Meta-Llama-3.1-8B", "mlp_bias", 0),
        ("Qwen--Qwen3.5-397B-A17B", "tie_word_embeddings", []),
    ],
)
def test_what_is_neither_true_nor_false_is_refused(name: str, field: str, value: object) -> None:
    """The truth tests have all classes and all their fields."""
    with pytest.raises(ModelError, match=f": {field}: .* is neither true nor false: vLLM does not"):
        read(changed(bundled(name), **{field: value}))


def test_every_field_that_is_true_or_false_is_looked_at() -> None:
    declared = " ".join([*_BY_THE_CLASS.values(), _AROUND, _CONDITIONS])
    assert sorted(_BOOLEANS) == sorted(set(declared.split()))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("inclusionAI--Ling-1T", "tie_word_embeddings"),
        ("inclusionAI--Ling-1T", "use_qkv_bias"),
        ("MiniMaxAI--MiniMax-M2", "attention_bias"),
        ("meta-llama--Meta-Llama-3.1-8B", "qkv_bias"),
        ("Qwen--Qwen3-Next-80B-A3B-Instruct", "qkv_bias"),
    ],
)
def test_a_condition_that_no_class_checks_counts_as_in_python(name: str, field: str) -> None:
    def held(value: object) -> int:
        return read(changed(bundled(name), **{field: value})).weight_bytes(ONE, 0).total

    assert held("false") == held(1) == held(True) != held(False) == held("") == held(0)


def test_a_null_around_a_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"config\.json: tie_word_embeddings: is null"):
        read(dict(QWEN3_VL_4B) | {"tie_word_embeddings": None})


def test_more_keys_than_queries_are_refused_with_the_field() -> None:
    config = changed(qwen3(1024, 16), num_key_value_heads=...)
    with pytest.raises(ModelError, match="num_key_value_heads: 32 does not divide"):
        read(config)


EXPERTS = {
    **dict.fromkeys(
        (
            "deepseek-ai--DeepSeek-V2-Lite",
            "deepseek-ai--DeepSeek-V3",
            "deepseek-ai--DeepSeek-V3.2",
            "moonshotai--Kimi-K2-Instruct",
            "moonshotai--Kimi-K2.5",
            "zai-org--GLM-4.7",
            "zai-org--GLM-5",
            "meituan-longcat--LongCat-Flash-Chat",
        ),
        "n_routed_experts",
    ),
    **dict.fromkeys((NEXT, QWEN35, "Qwen--Qwen3-235B-A22B", "inclusionAI--Ling-1T"), "num_experts"),
    **dict.fromkeys(
        ("mistralai--Mixtral-8x22B-v0.1", "openai--gpt-oss-120b", "MiniMaxAI--MiniMax-M2"),
        "num_local_experts",
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("renamed", ["num_routed_experts", "n_experts", "moe_num_experts", None])
def test_renamed_experts_never_make_a_dense_model(name: str, renamed: str | None) -> None:
    config, field = bundled(name), EXPERTS[name]
    value = text_of(config)[field]
    others = {} if renamed is None else {renamed: value}
    with pytest.raises(ModelError, match=f": {field}: is missing"):
        read(changed(config, **{field: ...}, **others))


COUNTS = {
    "n_shared_experts": ("deepseek-ai--DeepSeek-V3", "zai-org--GLM-4.7", "zai-org--GLM-5"),
    "first_k_dense_replace": (
        *("deepseek-ai--DeepSeek-V2-Lite", "deepseek-ai--DeepSeek-V3", "zai-org--GLM-4.7"),
        "moonshotai--Kimi-K2.5",
    ),
    "moe_layer_freq": ("deepseek-ai--DeepSeek-V2-Lite", "moonshotai--Kimi-K2-Instruct"),
    "decoder_sparse_step": (NEXT, "Qwen--Qwen3-235B-A22B"),
    "shared_expert_intermediate_size": (NEXT, QWEN35),
    "zero_expert_num": ("meituan-longcat--LongCat-Flash-Chat",),
}
"""What else tells dense layers from mixtures of experts, or shared experts from none."""


@pytest.mark.parametrize(
    ("name", "field"),
    [*EXPERTS.items(), *((name, field) for field in COUNTS for name in COUNTS[field])],
)
def test_a_count_of_experts_that_is_null_is_refused(name: str, field: str) -> None:
    """To the config class, or to the model of vLLM, it is no number: nothing is loaded."""
    with pytest.raises(ModelError, match=f": {field}: is (null|missing)"):
        read(changed(bundled(name), **{field: None}))


def test_a_null_width_of_shared_experts_is_refused_where_there_are_any() -> None:
    """vLLM's class of Ling takes the field where it is there, and multiplies it."""
    ling, field = bundled("inclusionAI--Ling-1T"), "moe_shared_expert_intermediate_size"
    with pytest.raises(ModelError, match=f": {field}: is missing; a whole number"):
        read(changed(ling, **{field: None}))
    with pytest.raises(ModelError, match=f": {field}: 0 is not a whole number"):
        read(changed(ling, **{field: 0}))
    none = changed(ling, num_shared_experts=0)
    assert read(changed(none, **{field: None})).linears(ONE) == read(none).linears(ONE)
    left_out = changed(ling, **{field: ...})
    same = changed(ling, **{field: ling["moe_intermediate_size"]})
    assert read(left_out).linears(ONE) == read(same).linears(ONE)


OTHER_NAMES = {
    "deepseek-ai--DeepSeek-V2-Lite": "num_experts",
    "deepseek-ai--DeepSeek-V3": "num_local_experts",
    "moonshotai--Kimi-K2.5": "num_local_experts",
    "zai-org--GLM-4.7": "num_local_experts",
    "zai-org--GLM-5": "num_local_experts",
    "Qwen--Qwen3-235B-A22B": "num_local_experts",
    "mistralai--Mixtral-8x22B-v0.1": "num_experts",
    "MiniMaxAI--MiniMax-M2": "num_experts",
    "openai--gpt-oss-120b": "num_experts",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_the_classs_other_name_is_taken(name: str) -> None:
    config, field = bundled(name), EXPERTS[name]
    renamed = changed(config, **{field: ..., OTHER_NAMES[name]: text_of(config)[field]})
    assert read(renamed).weight_bytes(ONE, 0) == read(config).weight_bytes(ONE, 0)


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("first", [False, True])
def test_a_field_and_its_other_name_that_differ_are_refused(name: str, *, first: bool) -> None:
    """To the class the other name is the field, and whichever it sets last stands."""
    config, field, other = bundled(name), EXPERTS[name], OTHER_NAMES[name]
    for value in (60, None, float(text_of(config)[field])):
        twice = {other: value} | text_of(config) if first else text_of(config) | {other: value}
        with pytest.raises(ModelError, match=f": {field}: .*: {other} is another name of it"):
            read(config | {"text_config": twice} if "text_config" in config else twice)
    same = changed(config, **{other: text_of(config)[field]})
    assert read(same).weight_bytes(ONE, 0) == read(config).weight_bytes(ONE, 0)


def test_the_two_other_names_of_a_field_may_not_differ_either() -> None:
    config = bundled("zai-org--GLM-5")
    with pytest.raises(ModelError, match="n_routed_experts: 32: num_experts is another name"):
        read(changed(config, n_routed_experts=..., num_local_experts=32, num_experts=64))


def test_the_field_case_is_refused_with_the_field() -> None:
    case = str(field_cases.PLACE / "deepseek-v3-renamed-experts")
    for flags in (["--dp", "8"], ["--dp", "8", "--ep"]):
        code, message = complaint("plan", "--model", case, *flags)
        assert code == 3
        assert "n_routed_experts: is missing" in message


SHARED = {
    "deepseek-ai--DeepSeek-V2-Lite": ("n_shared_experts", 2),
    "deepseek-ai--DeepSeek-V3": ("n_shared_experts", 1),
    "zai-org--GLM-4.7": ("n_shared_experts", 1),
    "deepseek-ai--DeepSeek-V3.1": ("q_lora_rank", 1536),
    "zai-org--GLM-5": ("q_lora_rank", 2048),
    "zai-org--GLM-5.1": ("index_topk", 2048),
    NEXT: ("decoder_sparse_step", 1),
}


@pytest.mark.parametrize("name", SHARED)
def test_other_fields_that_are_left_out_are_the_classs(name: str, tmp_path: Path) -> None:
    field, value = SHARED[name]
    config = bundled(name)
    assert read(changed(config, **{field: ...})).linears(ONE) == read(
        changed(config, **{field: value})
    ).linears(ONE)


def test_a_model_of_sparse_attention_without_its_topk_is_refused() -> None:
    """vLLM asserts it: the layers would be those of another architecture."""
    config = bundled("deepseek-ai--DeepSeek-V3.2")
    with pytest.raises(ModelError, match="index_topk: is missing, and vLLM refuses a model of"):
        read(changed(config, index_topk=...))


@pytest.mark.parametrize(
    ("named", "dtype"),
    [("half", "float16"), ("float", "bfloat16"), ("double", "bfloat16"), ("float64", "bfloat16")],
)
def test_the_other_spellings_of_a_dtype(named: str, dtype: str) -> None:
    llama = bundled("meta-llama--Meta-Llama-3.1-8B")
    for key in ("dtype", "torch_dtype"):
        assert read(changed(llama, torch_dtype=...) | {key: named}).dtype == dtype
    for unknown in ("bf16", "torch.bfloat16", "auto"):
        with pytest.raises(ModelError, match=f"torch_dtype: '{unknown}' is not one of"):
            read(llama | {"torch_dtype": unknown})


def test_a_class_has_another_name() -> None:
    llama = bundled("meta-llama--Meta-Llama-3.1-8B")
    model = read(llama | {"architectures": ["LLaMAForCausalLM"]})
    assert (model.architecture, model.linears(ONE)) == (
        "LlamaForCausalLM",
        read(llama).linears(ONE),
    )


@pytest.mark.parametrize("attentions", [55, 57, 58])
def test_attentions_are_two_a_layer(attentions: int) -> None:
    """LongCat-Flash's class counts attentions in num_hidden_layers."""
    config = bundled("meituan-longcat--LongCat-Flash-Chat")
    for left in (56, ...):
        counted = read(changed(config, num_layers=28, num_hidden_layers=left))
        assert counted.linears(ONE) == read(config).linears(ONE)
    with pytest.raises(
        ModelError, match=f"num_hidden_layers: {attentions} attentions, two a layer"
    ):
        read(changed(config, num_hidden_layers=attentions))
