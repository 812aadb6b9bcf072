"""LayerShardConfig: what may be said, and the one line that answers what may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError


def test_a_list_is_short_for_an_object():
    config = LayerShardConfig.parse(["o_proj", "q_b_proj"])
    assert config == LayerShardConfig.parse({"layers": ["o_proj", "q_b_proj"]})
    assert config.layers == ("o_proj", "q_b_proj")
    assert (config.prefetch_step, config.layer_stride, config.verify) == (1, 1, False)
    assert (config.placement, config.transport, config.report_dir) == ("round_robin", "auto", None)


def test_it_is_frozen():
    with pytest.raises(ValidationError):
        LayerShardConfig.parse(["o_proj"]).prefetch_step = 2


def test_shared_experts_may_be_sharded():
    names = ["shared_experts.down_proj", "mlp.gate_up_proj", "fused_qkv_a_proj"]
    assert LayerShardConfig.parse(names).layers == tuple(names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "layer_sharding = None: must be a list of names or an object; write for example"),
        ("o_proj", "must be a list of names or an object"),
        (7, "must be a list of names or an object"),
        ([], "layer_sharding.layers = (): Tuple should have at least 1 item"),
        ({}, "layer_sharding.layers: is missing; name at least one linear"),
        ({"layers": "o_proj"}, "layer_sharding.layers = 'o_proj': should be a valid tuple"),
        ([1], "layer_sharding.layers.0 = 1: should be a valid string"),
        ([["o_proj"]], "layer_sharding.layers.0 = ['o_proj']: should be a valid string"),
        (["o_proj", "o_proj"], "'o_proj' stands there more than once; name it once"),
        (["o_proj", "self_attn.o_proj"], "'self_attn.o_proj' is already matched by 'o_proj'"),
        ([""], "'' is not a dotted name"),
        ([" o_proj"], "' o_proj' is not a dotted name"),
        (["mlp..up"], "'mlp..up' is not a dotted name"),
        (["kv_b_proj"], "'kv_b_proj' may not be sharded: attention absorbs it"),
        (["self_attn.kv_b_proj"], "'self_attn.kv_b_proj' may not be sharded"),
        (["mlp.gate"], "'mlp.gate' may not be sharded: the router"),
        (["lm_head"], "'lm_head' may not be sharded"),
        (["embed_tokens"], "'embed_tokens' may not be sharded: an embedding is no linear"),
        (["mlp.experts.w2_weight"], "routed experts are distributed by expert parallelism"),
        ({"layers": ["a"], "prefetch_step": -1}, "prefetch_step = -1: should be greater than"),
        ({"layers": ["a"], "prefetch_step": 1.0}, "prefetch_step = 1.0: should be a valid integer"),
        ({"layers": ["a"], "prefetch_step": True}, "prefetch_step = True: should be a valid int"),
        ({"layers": ["a"], "prefetch_step": "1"}, "prefetch_step = '1': should be a valid integer"),
        ({"layers": ["a"], "prefetch_step": 65}, "give a whole number from 0 to 64"),
        ({"layers": ["a"], "layer_stride": 0}, "layer_stride = 0: should be greater than or equal"),
        ({"layers": ["a"], "placement": "striped"}, "choose one of round_robin, replicated"),
        ({"layers": ["a"], "transport": "pull"}, "choose one of auto, broadcast"),
        ({"layers": ["a"], "report_dir": 1}, "report_dir = 1: should be a valid string"),
        ({"layers": ["a"], "verify": 1}, "verify = 1: should be a valid boolean; give true"),
        (
            {"layers": ["a"], "step": 1},
            "layer_sharding.step: unknown key; the known ones are layer",
        ),
    ],
)
def test_one_line_names_the_key_the_value_and_the_remedy(value, message):
    with pytest.raises(ConfigError) as error:
        LayerShardConfig.parse(value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(["layers", "prefetch_step", "layer_stride", "placement", "verify", "other"])


@given(JSON | st.dictionaries(KEYS, JSON))
def test_any_json_is_accepted_or_refused_in_one_line(value):
    try:
        LayerShardConfig.parse(value)
        message = "accepted"
    except ConfigError as error:
        message = str(error)
    assert message
    assert "\n" not in message
