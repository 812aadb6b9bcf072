"""A null in any field that the planner reads is what vLLM makes of it, or is refused by name.

Of every config that is planned, each field that a family asks for becomes null in turn. Its class
says what it makes of that; where it leaves the null, vLLM's model is what counts (`AS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import pytest

from truth.config_fields import KINDS, made_of_nulls, read
from truth.published import PUBLISHED, put, without
from vllm_layershard.errors import LayerShardError
from vllm_layershard.models import Deployment, Model
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.plan import ParallelLayout

DEPLOYMENTS = (Deployment(ParallelLayout()), Deployment(ParallelLayout(tp=2, dp=2)))

OUT: Final = "left out"
HEADS: Final = "of the width"

AS: Final[Mapping[str, Any]] = {
    # Read before any model is built.
    **dict.fromkeys(("quantization_config", "compression_config", "text_config"), OUT),
    **dict.fromkeys(("dtype", "torch_dtype", "vision_config"), OUT),
    # models/*.py: a condition, which a null is not.
    **dict.fromkeys(("attention_bias", "bias", "mlp_bias", "qkv_bias", "qk_norm"), False),
    **dict.fromkeys(("use_bias", "use_qkv_bias", "use_qk_norm", "use_routing_bias"), False),
    **dict.fromkeys(("tie_word_embeddings", "ada_rms_norm_t_cond"), False),
    **dict.fromkeys(("moe_router_enable_expert_bias", "use_sliding_window"), False),
    # models/*.py: `head_dim or hidden_size // total_num_heads`, or the same where it is None.
    "head_dim": HEADS,
    # models/*.py, config/model.py: no layer has a window.
    "layer_types": OUT,
    "sliding_window": 0,
    # models/utils.py, qwen3_5_mtp.py and qwen3_next_mtp.py: no draft layer can be built.
    **dict.fromkeys(("num_nextn_predict_layers", "mtp_num_hidden_layers"), 0),
    # models/deepseek_v2.py: a pattern and a method that are asked whether they are there.
    "index_topk_pattern": OUT,
    "topk_method": "greedy",
    # models/bailing_moe.py: that of the model.
    "router_dtype": "bf16",
    # models/config.py: the state has the dtype of the model.
    "mamba_ssm_dtype": "bfloat16",
    # Qwen3-VL's class has one class for its language model.
    "model_type": OUT,
    # Nobody reads it beside layer_types.
    "full_attention_interval": OUT,
    # Qwen3.5's model does not read these.
    **dict.fromkeys(("decoder_sparse_step", "mlp_only_layers", "intermediate_size"), OUT),
}
"""Field -> the value in whose place a null is the same to vLLM 0.32."""

UNCOMPRESSED: Final = "q_lora_rank"
"""No number is the same as its null: vLLM builds `q_proj` then (DeepSeek-V2-Lite's case)."""


def plan(config: Mapping[str, Any]) -> tuple[Any, ...] | str:
    """All that is planned of it, or what is said against it."""
    try:
        model = read(config)
    except LayerShardError as error:
        return str(error)
    return (model.dtype, model.quantization, model.notes, *figures(model))


def figures(model: Model) -> Iterator[Any]:
    layers = range(model.num_layers)
    drafts = model.blueprint.drafts
    drafting = drafts is not None and bool(drafts.layers)
    for deployment in DEPLOYMENTS:
        yield model.linears(deployment)
        yield model.state_bytes_per_sequence(layers, deployment)
        for drafted in (0, 1) if drafting else (0,):
            asked = model._replace(drafted=drafted)
            yield asked.weight_bytes(deployment, 0)
            yield asked.kv_bytes_per_token("auto", layers, deployment)
            yield asked.cache_tokens(1 << 34, "auto", layers, deployment)


@cache
def fields_read(kind: str) -> tuple[tuple[bool, str], ...]:
    """What is asked for while a config is planned, and while it is with a null in each of these.

    True: of the language model's section.
    """
    config, found, tried = PUBLISHED[kind], set[tuple[bool, str]](), set[tuple[bool, str]]()
    inner = "text_config" in config
    patch = pytest.MonkeyPatch()

    get = ConfigFile.get

    def noted(self: ConfigFile, key: str) -> Any:
        if "quantization" not in self.where and "vision" not in self.where:
            found.add((inner and "text_config" in self.where, key))
        return get(self, key)

    patch.setattr(ConfigFile, "get", noted)
    try:
        plan(config)
        while left := found - tried:
            tried |= left
            for within, field in left:
                plan(put(config, field, within, None))
    finally:
        patch.undo()
    return tuple(sorted(found))


@cache
def made() -> dict[str, list[Any]]:
    """What the classes make of a null in each field that is read."""
    answers = made_of_nulls([(kind, PUBLISHED[kind], list(fields_read(kind))) for kind in KINDS])
    return dict(zip(KINDS, answers, strict=True))


def same(config: Mapping[str, Any], within: bool, field: str) -> dict[str, Any]:
    """The config with what the table has in place of a null."""
    value = AS[field]
    place = config["text_config"] if within else config
    if value is HEADS:
        value = place["hidden_size"] // place["num_attention_heads"]
    return without(config, field, within) if value is OUT else put(config, field, within, value)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_null_is_what_vllm_makes_of_it_or_is_refused_by_name(kind: str) -> None:
    config, fields = PUBLISHED[kind], fields_read(kind)
    answers = made()[kind] if kind in KINDS else [[None]] * len(fields)
    assert len(fields) > 15
    for (within, field), answer in zip(fields, answers, strict=True):
        planned = plan(put(config, field, within, None))
        if isinstance(planned, str):
            assert field in planned, (field, planned)
        elif answer is None:
            pytest.fail(f"{field}: its class refuses a null, and it is planned")
        elif field == UNCOMPRESSED:
            assert any(one.prefix.endswith(".q_proj") for one in planned[3]), field
        elif answer[0] is None:
            assert planned == plan(same(config, within, field)), field
        else:
            assert planned == plan(put(config, field, within, answer[0])), field


def test_every_row_of_the_table_is_of_a_field_that_is_read() -> None:
    assert set(AS) <= {field for kind in PUBLISHED for _, field in fields_read(kind)}
