"""The expressions of a config: they match as Python's do, and none takes longer than another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from console import Ended, layershard
from vllm_layershard.models.matching.expression import MAX_LENGTH, Expression, ExpressionError
from vllm_layershard.models.matching.patterns import MAX_NEGATED, MAX_PATTERNS, MAX_PLACES, Patterns
from vllm_layershard.models.matching.regular import read_expression
from vllm_layershard.models.matching.wildcard import read_wildcard
from vllm_layershard.models.sources.source import _BUNDLED
from work import Work

ONE = st.one_of(
    st.sampled_from([*"ab_7", ".", r"\.", r"\d", r"\w", r"\D", r"\W", r"\s", r"\-"]),
    st.sampled_from(["[ab]", "[^a]", "[a-z]", r"[\d_]", "[]a]", "[^]a]", "[a-]", r"[\w-]", "[.*]"]),
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?"])


def joined(parts: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(parts, max_size=most).map("".join)


TERM = st.tuples(ONE, REPEATS).map("".join)
GROUP = st.tuples(
    st.sampled_from(["(", "(?:"]),
    st.lists(joined(TERM, 3), min_size=1, max_size=3).map("|".join),
    st.sampled_from([")", ")", ")?"]),
).map("".join)
SEQUENCE = joined(st.one_of(TERM, TERM, GROUP), 6)
EXPRESSIONS = st.one_of(
    SEQUENCE,
    st.lists(SEQUENCE, min_size=1, max_size=3).map("|".join),
    st.tuples(st.sampled_from(["", "^", r"\A"]), SEQUENCE, st.sampled_from(["", "$", r"\Z"])).map(
        "".join
    ),
    SEQUENCE.map("^(?!{}).*$".format),
)
NAMES = st.text("ab.7_-", max_size=12)
PUBLISHED = [
    # llm-compressor's examples, compressed-tensors' tests, and public configs.
    r".*lm_head",
    r".*self_attn.*",
    r".*mlp.gate$",
    r".*shared_experts.*",
    r".*mlp\.(gate|up|gate_up|down)_proj.*",
    r".*[qkv]_proj",
    r".*(self_attn|attention)$",
    r"model\.layers\.\d+\.mlp\.gate$",
    r".*mlp\.experts\.\d+\.(gate|up|gate_up|down)_proj$",
    r".*block_sparse_moe\.experts\.\d+\.w[1-3]$",
    r"^(?!.*\.mlp\.experts(?:\.|$)).*$",
    r"^(?!.*experts).*$",
    r"^(?!.*language_model\.model\.layers\.)",
    r"(vision_tower|mm_projector)\..*",
]
MODULES = [
    "lm_head",
    "model.layers.3.mlp.gate",
    "model.layers.3.mlp.gate_proj",
    "model.layers.12.mlp.experts.7.down_proj",
    "model.layers.12.mlp.experts",
    "model.layers.12.mlp.shared_experts.up_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn",
    "model.layers.0.block_sparse_moe.experts.5.w2",
    "language_model.model.layers.1.self_attn.o_proj",
    "vision_tower.blocks.0.attn",
]


def read(text: str) -> Expression:
    """An expression as generated; not one whose groups are too many to be written out."""
    try:
        return read_expression(text)
    except ExpressionError as error:
        assume("written out" not in str(error))
        raise


@settings(max_examples=600, deadline=None)
@given(EXPRESSIONS, st.lists(NAMES, min_size=1, max_size=4))
@example("a?a?a?aaa", ["aaa", "aa", "aaaa"])
@example("(a|)b", ["b", "ab"])
@example("a*.b?$", ["aab", "a", ""])
@example("(a|b$).*$", ["a", "b", "bb"])
def test_an_expression_matches_as_re_does(text: str, names: list[str]) -> None:
    try:
        wanted = re.compile(text)
    except re.error:
        assume(False)
    patterns = Patterns([read(text)])
    for name in names * 2:  # asked twice, it is remembered
        assert patterns.match(name) == bool(wanted.match(name)), (text, name)


@settings(max_examples=200, deadline=None)
@given(st.lists(EXPRESSIONS, max_size=6), st.lists(NAMES, min_size=1, max_size=4))
def test_several_match_where_one_does(texts: list[str], names: list[str]) -> None:
    patterns = Patterns(map(read, texts))
    for name in names:
        found = [bool(re.match(text, name)) for text in texts]
        assert patterns.match(name) == any(found), (texts, name)
        assert patterns.first(name) == (found.index(True) if any(found) else None), (texts, name)


@settings(max_examples=500, deadline=None)
@given(st.text("ab*?[]!-^.\\7", max_size=10), st.text("ab.7!^[]-\\", max_size=8))
def test_a_wildcard_matches_as_fnmatch_does(text: str, name: str) -> None:
    assert Patterns([read_wildcard(text)]).match(name) == fnmatchcase(name, text)


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@settings(max_examples=500, deadline=None)
@given(st.text(r"ab.*+?()[]{}|^$\d1,-!:=<>P#", max_size=12), NAMES)
def test_what_is_no_expression_is_refused_and_the_rest_matches(text: str, name: str) -> None:
    try:
        patterns = Patterns([read_expression(text)])
    except ExpressionError:
        return
    assert patterns.match(name) == bool(re.match(text, name)), (text, name)


@pytest.mark.parametrize("text", PUBLISHED)
def test_those_that_checkpoints_have_are_read(text: str) -> None:
    patterns = Patterns([read_expression(text)])
    for name in MODULES:
        assert patterns.match(name) == bool(re.match(text, name)), name


REFUSED = {
    r"(a)\1": "has \\1",
    r"(?P<x>a)(?P=x)": "refers back",
    "a(?=b)": "looks around",
    "a(?!b)": "looks around",
    "(?<=a)b": "looks around",
    "(?<!a)b": "looks around",
    "(?i)a": "sets flags",
    "(?>a)": "looks around",
    "(a+)+": "repeats a group",
    "(a|b)*": "repeats a group",
    "(ab){2}": "repeats a group",
    "a*+": "repeats a repetition",
    "a{1000}": "repeats too often",
    "(a|b)" * 8: "alternatives, written out",
    "(" * 9 + ")" * 9: "nested too deeply",
    r"\bmlp": "has \\b",
    "a^b": "in its middle",
    "a$b": "in its middle",
    "^(?!a)b": "behind (?!...)",
    "a" * (MAX_LENGTH + 1): "has more than 512 characters",
    "*": "is not a regular expression",
    "(a": "is not a regular expression",
    "a)": "is not a regular expression",
    "[b-a]": "is not a regular expression",
    "\\": "is not a regular expression",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_by_its_reason(text: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(REFUSED[text])):
        read_expression(text)


def test_there_are_bounds_for_all_together() -> None:
    for texts in (
        ["a"] * (MAX_PATTERNS + 1),
        ["a" * MAX_LENGTH] * (MAX_PLACES // MAX_LENGTH),
        ["^(?!a).*"] * (MAX_NEGATED + 1),
    ):
        with pytest.raises(ExpressionError, match="are more than are matched"):
            Patterns(map(read_expression, texts))
    Patterns(map(read_expression, ["a"] * MAX_PATTERNS))


HOSTILE = {
    "one of six repetitions": [".*.*.*.*.*.*!"],
    "one of many": [".*" * 200 + "!"],
    "missing characters": [".?" * 200 + "!"],
    "a repetition of each": [".+?" * 150 + "!"],
    "alternatives alike": ["(.|.)(.|.)(.|.)(.|.)(.|.)(.|.)(.|.).*!"],
    "classes alike": [r"[\w.]*[\w.]*[\w.]*[\w.]*!"],
    "counted": [".{0,99}" * 20 + "!"],
    "very many": [f".*{i}!" for i in range(MAX_PATTERNS)],
    "very many that look like layers": [
        rf".*layers\.{i % 61}\..*_{i}$" for i in range(MAX_PATTERNS)
    ],
    "as long as may be": [".*" + "." * 480 + "!"] * 130,
    "negated ones": ["^(?!.*.*.*.*!).*$"] * MAX_NEGATED,
}
STEPS_EACH = 12
"""Of Python for a character of a name and an automaton, of which there is one, and one a negated
expression. It holds for all of them alike: a step is a few operations on integers of at most
65,536 bits."""


def names() -> Iterator[str]:
    for layer in range(61):
        for last in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"model.layers.{layer}.self_attn.{last}"
        for last in ("gate_proj", "up_proj", "down_proj", "gate"):
            yield f"model.layers.{layer}.mlp.{last}"


@pytest.mark.parametrize("case", HOSTILE)
def test_no_expression_takes_longer_than_another(case: str) -> None:
    texts = HOSTILE[case]
    patterns = Patterns(map(read_expression, texts))
    characters = sum(map(len, names()))
    automatons = MAX_NEGATED if case == "negated ones" else 1
    with Work(STEPS_EACH * characters * automatons):
        found = sum(map(patterns.match, names()))
    assert found == (len(list(names())) if case == "negated ones" else 0)


READING_STEPS = 6_000_000


@pytest.mark.parametrize("case", [*HOSTILE, "all characters there may be"])
def test_reading_them_takes_little_work(case: str) -> None:
    texts = HOSTILE.get(case) or ["(" + "|".join("abcdefgh" * 15) + ")" + "x" * 30] * MAX_PATTERNS
    with Work(READING_STEPS):
        try:
            Patterns(map(read_expression, texts))
        except ExpressionError:
            assert case == "all characters there may be"


@pytest.mark.parametrize(
    ("case", "key"),
    [
        *((case, "ignore") for case in HOSTILE),
        *((case, "targets") for case in ("one of six repetitions", "counted", "very many")),
    ],
)
def test_a_plan_of_a_hostile_config_takes_little_work(case: str, key: str, tmp_path: Path) -> None:
    texts = [f"re:{text}" for text in HOSTILE[case]]
    if key == "targets":
        texts = texts[:256]
    config = json.loads((_BUNDLED / "Qwen--Qwen3-32B.json").read_text())
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "0": {
                "targets": [*(texts if key == "targets" else []), "Linear"],
                "weights": weights,
                "input_activations": inputs,
            }
        },
        "ignore": texts if key == "ignore" else [],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Work(15_000_000):
        ended = layershard("plan", "--model", str(tmp_path))
    if (case, key) == ("negated ones", "ignore"):  # nothing is left to be quantised
        assert (ended.code, "stay unquantised" in ended.stderr) == (3, True), ended
    else:
        assert ended.code == 0, ended


def test_a_plan_asks_each_name_once(tmp_path: Path) -> None:
    patterns = Patterns([read_expression(".*q_proj")])
    asked = count()
    automaton = patterns._automaton
    assert automaton is not None
    step = type(automaton)._step

    def counted(self: object, state: int, character: str) -> int:
        next(asked)
        return step(self, state, character)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(automaton), "_step", counted)
        for _ in range(3):
            assert sum(map(patterns.match, names())) == 61
    assert next(asked) <= sum(map(len, names()))


def by_module(names: list[str]) -> dict[str, object]:
    """As Model Optimizer states mixed precisions."""
    algorithms = ({"quant_algo": "NVFP4", "group_size": 16}, {"quant_algo": "FP8"})
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "ignore": ["lm_head"],
        "quantized_layers": {name: algorithms["attn" in name] for name in names},
    }


def planned_with(quantization: dict[str, object], place: Path, steps: int) -> Ended:
    config = json.loads((_BUNDLED / "Qwen--Qwen3-235B-A22B.json").read_text())
    config["quantization_config"] = quantization
    text = json.dumps(config, indent=4)
    (place / "config.json").write_text(text)
    with Work(steps):
        return layershard("plan", "--model", str(place), "--dp", "8", "--ep")


def test_a_config_that_names_every_expert_is_read_to_its_end(tmp_path: Path) -> None:
    """As nvidia/MiniMax-M3-NVFP4 does in 3.1 MB: 22,422 modules. Here there are 36,472."""
    layers = [f"model.layers.{layer}" for layer in range(94)]
    attention = [f"{at}.self_attn.{q}_proj" for at in layers for q in ("q", "k", "v", "o")]
    experts = [
        f"{at}.mlp.experts.{expert}.{matrix}_proj"
        for at in layers
        for expert in range(128)
        for matrix in ("gate", "up", "down")
    ]
    ended = planned_with(by_module(attention + experts), tmp_path, 20_000_000)
    assert ended.code == 0, ended
    assert 3 << 20 < (tmp_path / "config.json").stat().st_size < 8 << 20
    assert "quantization modelopt_mixed" in ended.stdout


@pytest.mark.parametrize(
    "names",
    [
        ["a." * 3_000_000],
        [f"{'a.' * 13}{i}" for i in range(10)],
        [f"m{i}" for i in range((1 << 16) + 1)],
    ],
    ids=["a very long name", "deep names", "very many names"],
)
def test_names_without_end_are_refused(names: list[str], tmp_path: Path) -> None:
    ended = planned_with(by_module(names), tmp_path, 2_000_000)
    assert (ended.code, ended.stdout) == (3, "")
    assert "quantized_layers: has more than 65,536 names, or one of more than 12 dots" in (
        ended.stderr
    )


def test_targets_without_end_are_refused(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    said = "config_groups: has more than 65,536 targets, or 256 of them with a pattern"
    patterns, names = (f"re:.*a{i}" for i in range(257)), (f"a{i}" for i in range((1 << 16) + 1))
    for targets in map(list, (patterns, names)):
        section: dict[str, object] = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"0": {"targets": targets, "weights": weights}},
        }
        ended = planned_with(section, tmp_path, 2_000_000)
        assert (ended.code, said in ended.stderr) == (3, True), ended
