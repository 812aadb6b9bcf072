"""LayerShardConfig: what may be said, and the one line that answers what may not."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import OPTIONS, LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.ffn_config import FfnConfig
from vllm_layershard.schema import validated, validated_ffn

"""How long an example takes says how busy the machine is."""


def test_a_list_is_short_for_an_object():
    config = validated(["o_proj", "q_b_proj"])
    assert config == validated({"layers": ["o_proj", "q_b_proj"]})
    assert config.layers == ("o_proj", "q_b_proj")
    assert (config.prefetch_step, config.layer_stride, config.verify) == (1, 1, False)
    assert (config.placement, config.transport, config.report_dir) == ("round_robin", "auto", None)
    assert config.slice_bytes == 0
    assert config.keep_first is False
    assert config.token_exchange == ()
    assert (config.move, config.move_weights_from) == ("weights", None)


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        validated(["o_proj"]).prefetch_step = 2


def test_shared_experts_may_be_sharded():
    names = ["shared_experts.down_proj", "mlp.gate_up_proj", "fused_qkv_a_proj"]
    assert validated(names).layers == tuple(names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "layer_sharding = null: must be a list of names or an object; write for example"),
        ("o_proj", "must be a list of names or an object"),
        (7, "must be a list of names or an object"),
        (("o_proj",), "layer_sharding = ('o_proj',): must be a list of names or an object"),
        (True, "layer_sharding = true: must be a list of names or an object"),
        ([], 'layer_sharding.layers: is empty; name at least one linear, such as ["o_proj"'),
        ({"layers": []}, "layer_sharding.layers: is empty; name at least one linear"),
        ({"layers": None}, "layer_sharding.layers = null: should be a list"),
        ({"layers": {"o_proj": 1}}, "layer_sharding.layers = {'o_proj': 1}: should be a list"),
        ({}, "layer_sharding.layers: is missing; name at least one linear"),
        ({"layers": "o_proj"}, "layer_sharding.layers = 'o_proj': should be a list"),
        ([1], "layer_sharding.layers.0 = 1: should be a valid string"),
        ([["o_proj"]], "layer_sharding.layers.0 = ['o_proj']: should be a valid string"),
        (["o_proj", "o_proj"], "'o_proj' stands there more than once; name it once"),
        (["o_proj", "self_attn.o_proj"], "'self_attn.o_proj' is already matched by 'o_proj'"),
        ([None], "layer_sharding.layers.0 = null: should be a valid string"),
        ([""], "'' is not a dotted name"),
        (["  "], "'  ' is not a dotted name"),
        (["o_proj q_b_proj"], "'o_proj q_b_proj' is not a dotted name"),
        (["mlp. .up"], "'mlp. .up' is not a dotted name"),
        (["o_proj\n"], r"'o_proj\n' is not a dotted name"),
        (["o\u2028proj"], r"'o\u2028proj' is not a dotted name"),
        ([".o_proj"], "'.o_proj' is not a dotted name"),
        (["o_proj."], "'o_proj.' is not a dotted name"),
        (["a.o_proj", "b.a.o_proj"], "'b.a.o_proj' is already matched by 'a.o_proj'"),
        (["self_attn.o_proj", "o_proj"], "'self_attn.o_proj' is already matched by 'o_proj'"),
        ([" o_proj"], "' o_proj' is not a dotted name"),
        (["mlp..up"], "'mlp..up' is not a dotted name"),
        (["kv_b_proj"], "'kv_b_proj' may not be sharded: attention absorbs it"),
        (["self_attn.kv_b_proj"], "'self_attn.kv_b_proj' may not be sharded"),
        (["mlp.gate"], "'mlp.gate' may not be sharded: the router"),
        (["lm_head"], "'lm_head' may not be sharded"),
        (["embed_tokens"], "'embed_tokens' may not be sharded: an embedding is no linear"),
        (["gate"], "'gate' may not be sharded: the router"),
        (["router"], "'router' may not be sharded: the router"),
        (["wte"], "'wte' may not be sharded: an embedding"),
        (["w13_weight"], "'w13_weight' may not be sharded: routed experts"),
        (["w2_weight"], "'w2_weight' may not be sharded: routed experts"),
        (["experts.0.down_proj"], "'experts.0.down_proj' may not be sharded: routed experts"),
        (["o_proj", "experts"], "'experts' may not be sharded: routed experts"),
        (["mlp.experts.w2_weight"], "routed experts are distributed by expert parallelism"),
        ({"layers": ["a"], "prefetch_step": -1}, "prefetch_step = -1: should be greater than"),
        ({"layers": ["a"], "prefetch_step": 1.0}, "prefetch_step = 1.0: should be a valid integer"),
        ({"layers": ["a"], "prefetch_step": True}, "prefetch_step = true: should be a valid int"),
        ({"layers": ["a"], "prefetch_step": "1"}, "prefetch_step = '1': should be a valid integer"),
        ({"layers": ["a"], "prefetch_step": 65}, "give a whole number from 0 to 64"),
        ({"layers": ["a"], "prefetch_step": 10**400}, "should be less than or equal to 64; give"),
        ({"layers": ["a"], "prefetch_step": [1]}, "prefetch_step = [1]: should be a valid integer"),
        ({"layers": ["a"], "prefetch_step": None}, "prefetch_step = null: should be a valid int"),
        ({"layers": ["a"], "prefetch_step": float("nan")}, "prefetch_step = nan: should be a val"),
        (
            {"layers": ["a"], "keep_first": 1},
            "keep_first = 1: should be a valid boolean; give true",
        ),
        ({"layers": ["a"], "layer_stride": True}, "layer_stride = true: should be a valid integer"),
        ({"layers": ["a"], "placement": None}, "placement = null: should be 'round_robin'"),
        ({"layers": ["a"], "placement": ["round_robin"]}, "placement = ['round_robin']: should"),
        ({"layers": ["a"], "layer_stride": 0}, "layer_stride = 0: should be greater than or equal"),
        ({"layers": ["a"], "placement": "mirror"}, "choose one of round_robin, striped, repl"),
        ({"layers": ["a"], "transport": "push"}, "choose one of auto, broadcast, pull"),
        ({"layers": ["a"], "slice_bytes": -1}, "slice_bytes = -1: should be greater than or equal"),
        ({"layers": ["a"], "slice_bytes": 10**400}, "should be less than or equal to 1099511627"),
        ({"layers": ["a"], "slice_bytes": "1M"}, "slice_bytes = '1M': should be a valid integer"),
        (
            {"layers": ["a"], "placement": "striped", "transport": "broadcast"},
            "placement = 'striped': a broadcast moves whole layers from one rank; use transport",
        ),
        ({"layers": ["a"], "report_dir": 1}, "report_dir = 1: should be a valid string"),
        ({"layers": ["a"], "verify": 1}, "verify = 1: should be a valid boolean; give true"),
        (
            {"layers": ["a"], "token_exchange": "a"},
            "token_exchange = 'a': should be a list; give a",
        ),
        (
            {"layers": ["a"], "token_exchange": [1]},
            "token_exchange.0 = 1: should be a valid string",
        ),
        (
            {"layers": ["a"], "token_exchange": ["b.a"]},
            "token_exchange: 'b.a' is not among layers ('a'); name it there, too, as it is here",
        ),
        ({"layers": ["a"], "token_exchange": ["a", "a"]}, "token_exchange: 'a' stands there more"),
        ({"layers": ["a"], "move": "tokens"}, "choose one of weights, activations, auto"),
        ({"layers": ["a"], "move": None}, "move = null: should be 'weights', 'activations' or"),
        ({"layers": ["a"], "move": ["auto"]}, "move = ['auto']: should be 'weights', 'activat"),
        (
            {"layers": ["a"], "move": "auto"},
            "layer_sharding.move_weights_from: is missing; with move 'auto' give the fewest tokens",
        ),
        (
            {"layers": ["a"], "move": "auto", "move_weights_from": 0},
            "move_weights_from = 0: should be greater than or equal to 1; give a whole number of",
        ),
        (
            {"layers": ["a"], "move": "auto", "move_weights_from": True},
            "move_weights_from = true: should be a valid integer; give a whole number of tokens",
        ),
        (
            {"layers": ["a"], "move": "auto", "move_weights_from": 1.0},
            "move_weights_from = 1.0: should be a valid integer; give a whole number of tokens",
        ),
        (
            {"layers": ["a"], "move": "activations", "move_weights_from": 8},
            "move_weights_from = 8: with move 'activations' every forward moves the same; leave",
        ),
        (
            {"layers": ["a"], "move_weights_from": 8},
            "move_weights_from = 8: with move 'weights' every forward moves the same; leave it out",
        ),
        (
            {"layers": ["a"], "move": "activations", "token_exchange": ["a"]},
            "move = 'activations': token_exchange moves the tokens of 'a' already; leave out one",
        ),
        (
            {"layers": ["a"], "step": 1},
            "layer_sharding.step: unknown key; the known ones are layer",
        ),
        ({"layers": ["a"], "a\nb": 1}, r"layer_sharding.'a\nb': unknown key; the known ones are"),
        ({"layers": ["a"], "\ud800": 1}, r"layer_sharding.'\ud800': unknown key; the known ones"),
        ({"layers": ["a"], 7: 1}, "layer_sharding.7: unknown key; the known ones are layers"),
    ],
)
def test_one_line_names_the_key_the_value_and_the_remedy(value, message):
    with pytest.raises(ConfigError) as error:
        validated(value)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_one_fault_is_one_sentence():
    with pytest.raises(ConfigError) as error:
        validated([1])
    assert str(error.value) == (
        "layer_sharding.layers.0 = 1: should be a valid string; "
        'name at least one linear, such as ["o_proj", "q_b_proj"]'
    )


def test_two_faults_are_both_named():
    with pytest.raises(ConfigError, match=r"prefetch_step = '1': .*; layer_sharding\.verify = 2: "):
        validated({"layers": ["a"], "prefetch_step": "1", "verify": 2})
    with pytest.raises(ConfigError, match=r"layers: is empty.*; layer_sharding\.layer_stride = 0"):
        validated({"layers": [], "layer_stride": 0})


DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        "o" * 10**6,
        [1] * 10**4,
        ["o" * 10**5 + " "],
        ["o" * 10**5] * 2,
        ["o" * 10**5 + ".kv_b_proj"],
        {f"key{i}": 1 for i in range(10**4)},
        {"layers": ["a"], "k" * 10**6: 1},
        {"layers": ["a"], "report_dir": {"a": ["b" * 10**6] * 10}},
        DEEP,
        {"layers": DEEP},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_huge_value_has_a_short_answer(value):
    with pytest.raises(ConfigError) as error:
        validated(value)
    assert len(str(error.value)) < 1000


def test_many_faults_are_counted():
    with pytest.raises(ConfigError, match=r"; and 5 more$"):
        validated([1] * 10)
    with pytest.raises(ConfigError) as error:
        validated([1] * 5)
    assert "more" not in str(error.value)


def test_many_names_are_checked_in_no_time():
    names = [f"block.linear_{i}" for i in range(20_000)]
    assert validated(names).layers == tuple(names)


@pytest.mark.parametrize("step", [0, 64])
def test_the_ends_of_the_prefetch_step_are_legal(step):
    config = validated({"layers": ["o_proj"], "prefetch_step": step})
    assert config.prefetch_step == step


@pytest.mark.parametrize("name", ["gate_up_proj", "gate_proj", "shared_experts.gate_up_proj"])
def test_a_name_that_only_begins_like_a_refused_one_is_legal(name):
    assert validated([name]).layers == (name,)


def test_names_that_only_end_alike_do_not_overlap():
    names = ("proj", "o_proj", "kv_o_proj")
    assert validated(list(names)).layers == names


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "o_proj", "experts", "gate"]), min_size=1, max_size=3).map(
        ".".join
    ),
    min_size=1,
    max_size=4,
)


@given(NAMES)
def test_a_list_and_an_object_are_answered_alike(names):
    answers = []
    for value in (names, {"layers": names}):
        try:
            answers.append(validated(value))
        except ConfigError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@given(NAMES)
def test_names_are_accepted_if_and_only_if_no_two_match_the_same_linear(names):
    refused = any("experts" in name.split(".") or name.split(".")[-1] == "gate" for name in names)
    overlap = any(
        i != j and ("." + one).endswith("." + other)
        for i, one in enumerate(names)
        for j, other in enumerate(names)
    )
    if refused or overlap:
        with pytest.raises(ConfigError):
            validated(names)
    else:
        assert validated(names).layers == tuple(names)


ANY_TEXT = st.text(st.characters(), max_size=40)
"""Lone surrogates included: JSON can write them."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*OPTIONS, "other"])


@given(JSON | st.dictionaries(KEYS, JSON | st.just(["o_proj"])))
def test_any_json_is_accepted_or_refused_in_one_line(value):
    try:
        validated(value)
        message = "accepted"
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


def answer(make: Any, *arguments: Any, **keywords: Any) -> LayerShardConfig | str:
    """The configuration that is made, or the message of the refusal."""
    try:
        made: LayerShardConfig = make(*arguments, **keywords)
    except ConfigError as error:
        return str(error)
    return made


NAMED = {
    "placement": ["round_robin", "striped"],
    "transport": ["auto", "pull", "broadcast"],
    "move": ["weights", "activations", "auto"],
}
"""Of these keys a string that is not known has words of its own in Python."""
VALUES = {
    key: st.sampled_from(NAMED[key]) | JSON.filter(lambda value: not isinstance(value, str))
    if key in NAMED
    else JSON | st.sampled_from([["o_proj"], 0, 1, 2, True, "reports"])
    for key in OPTIONS
}


@given(
    st.fixed_dictionaries(
        {"layers": VALUES["layers"]},
        optional={key: values for key, values in VALUES.items() if key != "layers"},
    )
)
def test_python_is_answered_as_json_is(value):
    assert answer(LayerShardConfig, **value) == answer(validated, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"keep_first": "no"}, "keep_first = 'no': should be a valid boolean; give true or false"),
        ({"verify": None}, "verify = null: should be a valid boolean; give true or false"),
        ({"prefetch_step": 1.5}, "prefetch_step = 1.5: should be a valid integer; give a whole"),
        ({"prefetch_step": float("nan")}, "prefetch_step = nan: should be a valid integer; give"),
        ({"prefetch_step": float("inf")}, "prefetch_step = inf: should be a valid integer; give"),
        ({"prefetch_step": "1"}, "prefetch_step = '1': should be a valid integer; give a whole"),
        ({"prefetch_step": 10**5000}, "should be less than or equal to 64; give a whole number"),
        ({"layer_stride": True}, "layer_stride = true: should be a valid integer; give a whole"),
        ({"slice_bytes": None}, "slice_bytes = null: should be a valid integer; give a whole"),
        ({"layers": 1}, "layers = 1: should be a list; name at least one linear, such as"),
        ({"layers": (1,)}, "layers.0 = 1: should be a valid string; name at least one linear"),
        ({"layers": "o_proj"}, "layers = 'o_proj': should be a list; name at least one linear"),
        ({"layers": {"o_proj"}}, "layers = {'o_proj'}: should be a list; name at least one"),
        ({"layers": (1,) * 7}, "layers.4 = 1: should be a valid string; .*; and 2 more$"),
        ({"placement": ["striped"]}, "should be 'round_robin', 'striped' or 'replicated'; choose"),
        ({"transport": b"pull"}, "should be 'auto', 'broadcast' or 'pull'; choose one of"),
        ({"report_dir": Path("a")}, "report_dir = .*: should be a valid string; give the path of"),
    ],
)
def test_a_value_of_another_type_is_refused_in_python_too(value, message):
    value = {"layers": ("o_proj",)} | value
    with pytest.raises(ConfigError, match=message) as error:
        LayerShardConfig(**value)
    assert answer(validated, value) == str(error.value)


def test_a_list_of_names_becomes_a_tuple():
    config = LayerShardConfig(layers=["o_proj", "q_b_proj"])  # type: ignore[arg-type]
    assert config == validated(["o_proj", "q_b_proj"])
    assert hash(config) == hash(validated(["o_proj", "q_b_proj"]))
    exchanging = LayerShardConfig(layers=["o_proj"], token_exchange=["o_proj"])  # type: ignore[arg-type]
    assert exchanging == validated({"layers": ["o_proj"], "token_exchange": ["o_proj"]})


@pytest.mark.parametrize("size", [1, 2, 8, 4096])
def test_a_size_of_dense_mlps_is_a_whole_number(size):
    config = validated_ffn(size)
    assert config == FfnConfig(size)
    assert config.splits is (size > 1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("8", "'8': should be a valid integer"),
        (8.0, "8.0: should be a valid integer"),
        (True, "true: should be a valid integer"),
        (None, "null: should be a valid integer"),
        ([8], "[8]: should be a valid integer"),
        ({"size": 8}, "{'size': 8}: should be a valid integer"),
        (0, "0: should be greater than or equal to 1"),
        (-(1 << 80), "-1208925819614629174706176: should be greater than or equal to 1"),
    ],
)
def test_another_size_is_answered_in_one_line_by_schema_and_class_alike(value, problem):
    expected = (
        f"denseffn_tensor_parallel_size = {problem}; give how many data-parallel ranks split each "
        "dense MLP, or 1 to split none"
    )
    for read in (validated_ffn, FfnConfig):
        with pytest.raises(ConfigError) as error:
            read(value)
        assert str(error.value) == expected
