"""What a plan advises, remarks and refuses is true, and follows from its own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from console import complaint, document, layershard, said


def plan(*arguments: str) -> dict[str, Any]:
    return document("plan", "--model", "DeepSeek-V3", *arguments)


@pytest.mark.parametrize("step", [20, 60])
def test_a_step_that_is_too_large_is_called_so(step: int) -> None:
    verdict = plan("--prefetch-step", str(step))["prefetch"]["verdict"]
    assert verdict.count(f"prefetch_step 1 does better than {step}") == 2


def test_a_plan_that_loses_memory_says_so_first() -> None:
    losing = ("--dp", "8", "--ep", "--layers", "o_proj", "--layer-stride", "31")
    document = plan(*losing)
    assert document["memory"]["saved_bytes_min"] < 0
    assert document["prefetch"]["verdict"].startswith("do not enable it: a rank saves nothing")
    (note,) = [text for text in document["warnings"] if "saves nothing on some rank" in text]
    assert note.endswith("lower prefetch_step or lower layer_stride or leave it out")
    (note,) = [
        text
        for text in plan(*losing, "--prefetch-step", "0")["warnings"]
        if "saves nothing on some rank" in text
    ]
    assert note.endswith("1 slot; lower layer_stride or leave it out")
    config = '{"layer_sharding": {"layers": ["o_proj"], "layer_stride": 31}}'
    checked = said("check", config, "--model", "DeepSeek-V3", "--dp", "8", "--ep")
    assert checked.startswith("valid, but do not enable it: ")


def test_a_kept_first_layer_costs_one_layer_and_hides_more() -> None:
    shared = plan()
    kept = plan("--keep-first")
    assert (shared["sharding"]["keep_first"], kept["sharding"]["keep_first"]) == (False, True)
    for one, other in zip(shared["series"], kept["series"], strict=True):
        assert (one["kept_layer"], other["kept_layer"]) == (None, 0)
        assert [0, *other["layer_ids"]] == one["layer_ids"]
        assert other["owner"] == one["owner"][1:]
        saved = [a - b for a, b in zip(one["saved_bytes"], other["saved_bytes"], strict=True)]
        assert saved == [0] + [one["layer_bytes"]] * 7  # rank 0 kept it before
    prefill, kept_prefill = (document["prefetch"]["phases"][0] for document in (shared, kept))
    assert prefill["stalled_us"] > 0  # the first movements, and no other
    assert kept_prefill["stalled_us"] == 0
    assert '"keep_first": true' in kept["launch"]
    losing = ("--dp", "8", "--ep", "--layers", "o_proj", "--layer-stride", "31")
    notes = plan(*losing, "--keep-first", "--prefetch-step", "0")["warnings"]
    (note,) = [text for text in notes if "saves nothing on some rank" in text]
    assert note.endswith("lower layer_stride or do without keep_first or leave it out")


@pytest.mark.parametrize("tokens", ["1024", "2048"])
def test_keep_first_is_advised_with_what_it_leaves(tokens: str) -> None:
    """Every eighth layer moves: the forward waits for the first alone, and no step helps that."""
    flags = ("--dp", "8", "--ep", "--layer-stride", "8", "--tokens", tokens)
    verdict, kept = plan(*flags)["prefetch"]["verdict"], plan(*flags, "--keep-first")["prefetch"]
    for phase in kept["phases"]:
        left = phase["exposed_us"] / phase["compute_us"]
        said = f"{left:.2%}" if left < 0.02 else f"{left:.1%}"
        assert f"with keep_first it would be {said}" in verdict
    assert "keep_first" not in kept["verdict"]


def test_keep_first_is_not_advised_for_little_or_for_nothing() -> None:
    few = ("--tokens", "64", "--layers", "o_proj", "--layer-stride", "20")
    for flags in (
        ("--tokens", "2048"),  # the broadcasts take memory bandwidth in all 61 layers
        ("--tokens", "64", "--dp", "16", "--ep"),  # the link is the bound by far
        ("--layers", "o_proj", "--layer-stride", "12", "--tokens", "64"),  # a third of the saving
        (*few, "--prefetch-step", "1"),  # with it nothing would be saved
        (*few, "--prefetch-step", "3"),  # three layers are too few for the step
    ):
        assert "keep_first" not in plan(*flags)["prefetch"]["verdict"], flags


def test_a_decode_that_only_keep_first_hides_is_not_refused_outright() -> None:
    flags = "--model gpt-oss-120b --dp 8 --hardware MI300X --prefetch-step 2 --layer-stride 3"
    given = [*flags.split(), "--layers", "o_proj", "--placement", "striped"]
    given += ["--tokens", "2048", "--batch", "1024"]
    prefetch = json.loads(said("plan", *given, "--json"))["prefetch"]
    kept = json.loads(said("plan", *given, "--keep-first", "--json"))["prefetch"]
    assert "as it is, it hides from 3,410 tokens" in prefetch["verdict"]
    assert prefetch["verdict"].endswith("): do not enable it there as it is")
    assert kept["verdict"].endswith("hidden in decode at batch 1,024")
    for one, other in zip(prefetch["phases"], kept["phases"], strict=True):
        assert one["keep_first_exposed_us"] == other["exposed_us"]
        assert other["keep_first_exposed_us"] is None


@pytest.mark.parametrize(
    ("flags", "advised"),
    [
        # The movement takes longer than the compute, and yet less is exposed, or all hides.
        ("DeepSeek-V3 --dp 8 --ep --prefetch-step 0 --batch 1", "prefetch_step 1 does better"),
        (
            "GLM-4.7 --dp 8 --hardware L40S --layers o_proj --layer-stride 10 --batch 256",
            "with keep_first it would be 0.26%",
        ),
        # A step that hides is better than one that is 1 % slower and does not.
        (
            "Kimi-K2-Instruct --dp 2 --hardware H20 --prefetch-step 0 --layer-stride 4 --batch 256",
            "prefetch_step 1 does better",
        ),
    ],
)
def test_what_helps_is_named_before_what_does_not(flags: str, advised: str) -> None:
    printed = " ".join(said("plan", "--model", *flags.split()).split())  # however wide a line is
    decode = printed.partition("decode at batch")[2]
    assert advised in decode.partition("):")[0]


def test_the_map_shows_a_kept_layer_on_every_rank() -> None:
    flags = ["map", "--model", "DeepSeek-V3", "--dp", "2", "--layers", "o_proj", "--keep-first"]
    text = said(*flags)
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "every", "rank"] in rows
    assert ["1", "1"] in rows
    owned = [row for row in rows if row[:2] in (["0", "0"], ["1", "0"])]
    assert [row[1:4] for row in owned] == [["0", "2", "4"], ["0", "1", "3"]]
    (group,) = json.loads(said(*flags, "--json"))["groups"]
    (series,) = group["series"]
    assert (series["kept_layer"], series["layer_ids"][0]) == (0, 1)


def test_phases_may_be_given_one_by_one() -> None:
    flags = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--tokens", "16K", "--check"]
    for given in (["decode", "prefill"], ["prefill", "decode"], ["decode,prefill"]):
        named = [word for name in given for word in ("--hide-in", name)]
        assert layershard(*flags, *named).code == 1
    assert layershard(*flags, "--hide-in", "prefill").code == 0


def test_what_does_not_fit_is_said_as_compare_says_it() -> None:
    unfit = plan("--dp", "8", "--ep", "--hardware", "H20")
    said = "it does not fit: the weights of one rank (95.8 GiB, sharded 88.5 GiB) exceed the"
    assert unfit["prefetch"]["verdict"].startswith(said)
    assert "fit" not in " ".join(unfit["warnings"]), "it is said once"
    notes = " ".join(plan("--dp", "8", "--ep")["warnings"])
    assert "does not fit" not in notes
    assert "tokens of cache" not in notes
    notes = " ".join(plan("--dp", "8", "--ep", "--batch", "512", "--context", "16K")["warnings"])
    assert "asks for 8,388,608 tokens of cache; H200 has room for" in notes


def test_a_plan_that_does_not_fit_fails_and_names_no_command_to_launch(tmp_path: Path) -> None:
    flags = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--tokens", "16K", "--check"]
    fits = layershard(*flags, "--hardware", "H200")
    assert fits.code == 0
    assert "vllm serve" in fits.stdout
    page = tmp_path / "page.html"
    unfit = layershard(*flags, "--hardware", "A100", "--html", str(page))
    assert unfit.code == 1
    assert "check failed: it does not fit" in unfit.stderr
    assert "vllm serve" not in unfit.stdout
    verdict = next(line for line in unfit.stdout.splitlines() if line.startswith("verdict"))
    assert verdict.split(maxsplit=1)[1].startswith("it does not fit: ")
    text = page.read_text()
    assert "vllm serve" not in text
    assert text.index("it does not fit: ") < text.index('class="figures"')


def test_the_document_says_whether_the_weights_fit(tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps({"base": "H200", "memory_bytes": None}))
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"base": "H200", "memory_bytes": 100 * 2**30}))
    for device, fits, fits_without in (
        ("H200", True, True),
        (str(small), True, False),
        ("A100", False, False),
        (str(unknown), None, None),
    ):
        found = plan("--dp", "8", "--ep", "--hardware", device)
        assert found["memory"]["fits"] is fits
        assert found["memory"]["fits_without_sharding"] is fits_without
        assert (found["launch"] is None) == (fits is False)


def test_the_kv_cache_line_counts_tokens_that_have_room(tmp_path: Path) -> None:
    """Bytes saved are no tokens gained where the weights leave no room, or left none before."""
    small, page = tmp_path / "small.json", tmp_path / "page.html"
    small.write_text(json.dumps({"base": "H200", "memory_bytes": 100 * 2**30}))
    for device, line, figure in (
        ("H200", "111,184 more tokens, at 70,272 bytes a token", "<b>111,184</b><small>more KV"),
        (
            str(small),
            "room for 52,800 tokens, at 70,272 bytes a token; without sharding for none",
            "<b>52,800</b><small>KV tokens have room, none without sharding,",
        ),
        ("A100", "room for no token, at 70,272 bytes a token", "<b>0</b><small>KV tokens have"),
    ):
        flags = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", device]
        text = said(*flags, "--html", str(page), COLUMNS="300")
        (shown,) = [row for row in text.splitlines() if row.startswith("KV cache")]
        assert shown.split(maxsplit=2)[2] == line
        assert figure in page.read_text()
        assert json.loads(said(*flags, "--json"))["kv_cache"]["tokens_gained"] == 111_184
    layouts = ["--layout", "dp8+ep+shard", "--json"]
    compared = said("compare", "--model", "DeepSeek-V3", "--hardware", str(small), *layouts)
    assert json.loads(compared)["layouts"][0]["engine_tokens"] == 52_800


def test_a_cache_that_shrinks_is_said_to_shrink(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    flags = ["--layers", "o_proj", "--dp", "8", "--ep", "--layer-stride", "31"]
    text = said("plan", "--model", "DeepSeek-V3", *flags, "--html", str(page))
    (shown,) = [row for row in text.splitlines() if row.startswith("KV cache")]
    number, word = shown.split()[2:4]
    assert word == "fewer"
    assert f"<b>{number}</b><small>fewer KV tokens" in page.read_text()


def test_a_context_parallel_prefill_attends_to_the_whole_prompt() -> None:
    alone = plan("--dp", "4", "--ep", "--layers", "o_proj")["prefetch"]["phases"][0]
    shared = plan("--pcp", "4", "--ep", "--layers", "o_proj")["prefetch"]["phases"][0]
    assert shared["context"] == 4 * alone["context"] == 4 * 4096
    assert shared["compute_us"] > alone["compute_us"]


def test_a_layer_with_two_of_a_name_has_defaults_too() -> None:
    text = said("plan", "--model", "LongCat-Flash-Chat")
    for name in ("0.o_proj", "1.o_proj", "0.q_b_proj", "1.q_b_proj"):
        assert f"\n{name} " in text
    assert "refused" not in said("compare", "--model", "LongCat-Flash-Chat")


def test_context_parallelism_without_mla_is_remarked_on() -> None:
    assert "multi-head latent attention" in said("plan", "--model", "Qwen3-32B", "--pcp", "4")
    assert "multi-head latent attention" not in said("plan", "--model", "DeepSeek-V3", "--pcp", "4")


def test_a_trace_of_nothing_is_not_written(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    document = plan("--dp", "16", "--ep", "--hardware", "MI300X", "--trace", str(trace))
    assert f"{trace} was not written: nothing is estimated" in document["warnings"]
    assert not trace.exists()


def test_one_is_singular() -> None:
    text = said("plan", "--model", "DeepSeek-V3", "--tokens", "1", "--batch", "1")
    assert "prefill, 1 token " in text
    assert " 1 tokens" not in text


def test_auto_goes_with_plan_only() -> None:
    for command in ("map", "compare"):
        code, message = complaint(command, "--model", "DeepSeek-V3", "--layers", "auto")
        assert code == 2
        assert "goes with `layershard plan` only" in message
        assert "--hide-in" not in said(command, "--help")
