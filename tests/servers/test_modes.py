"""Modes of a server: made-up weights, prefix caching, chunked prefill, LoRA, drafting by MTP."""

from __future__ import annotations

import re

import pytest
import torch

from serving.adapter import adapter_for
from serving.answers import ask, check_identical, transformers_says
from serving.layout import Layout
from serving.metrics import CACHED, cached_tokens, repeated_tokens
from serving.reports import check_reports
from serving.server import Server, ServerError
from serving.weights import first_layers, with_draft_layer

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="modes"), pytest.mark.timeout(900)]

LAYERS = ["o_proj", "q_b_proj"]


def asking(tmp_path) -> dict:
    return {"layers": LAYERS, "verify": True, "report_dir": str(tmp_path / "reports")}


def test_an_option_that_vllm_turns_off_is_a_failure(model, tmp_path):
    """As of a model with MLA on a CPU without AMX. Nothing would be tested with it."""
    if torch.cpu._is_amx_tile_supported():
        # vLLM turns nothing off there, so there is nothing that the guard could find.
        pytest.skip("with AMX vLLM leaves both on")
    arguments = (*CACHED, "--enable-chunked-prefill", "--max-num-batched-tokens", "32")
    off = ["--block-size", "--enable-chunked-prefill", "--enable-prefix-caching"]
    said = f"turned off {', '.join([*off, '--max-num-batched-tokens'])}"
    server = Server(model, tmp_path / "log", arguments=arguments)
    with pytest.raises(ServerError, match=said), server:
        pytest.fail("it is said to be ready")


def test_prefix_caching_and_chunked_prefill(grouped, prompts, tmp_path):
    """Of a model without MLA: see the fixture. Asked again, all that may be cached is."""
    layers = ["o_proj", "qkv_proj"]
    arguments = (*CACHED, "--enable-chunked-prefill", "--max-num-batched-tokens", "32")
    sharding = asking(tmp_path) | {"layers": layers}
    answers = {}
    for case, asked in (("plain", None), ("sharded", sharding)):
        with Server(grouped, tmp_path / case, sharding=asked, arguments=arguments) as server:
            first = ask(server, prompts)
            before = cached_tokens(server)
            answers[case] = first, ask(server, prompts)
            cached = [now - then for now, then in zip(cached_tokens(server), before, strict=True)]
            assert cached == repeated_tokens(server, prompts)
            if asked is not None:
                check_reports(tmp_path / "reports", grouped, layers)
    reference = transformers_says(grouped, prompts)
    assert [answer.token_ids for answer in answers["plain"][0]] == reference
    check_identical(answers["sharded"][0], answers["plain"][0])
    check_identical(answers["sharded"][1], answers["plain"][1])


def test_made_up_weights_are_the_same_whoever_owns_them(model, prompts, tmp_path):
    """What vLLM makes up depends on a parameter's shape alone, whoever owns it."""
    answers = {}
    for case, asked in (("plain", None), ("sharded", asking(tmp_path))):
        with Server(
            model, tmp_path / case, sharding=asked, arguments=("--load-format", "dummy")
        ) as server:
            answers[case] = ask(server, prompts)
            if asked is not None:
                check_reports(tmp_path / "reports", model, LAYERS)
    check_identical(answers["sharded"], answers["plain"])


def test_lora_on_a_sharded_linear(model, prompts, tmp_path):
    """On dense layers: with LoRA, vLLM 0.32 runs routed experts by Triton kernels only."""
    dense = first_layers(model, tmp_path / "dense", 4)
    adapter = adapter_for(dense, tmp_path / "adapter")
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"adapter={adapter}")
    layout, layers = Layout(tp=2), ["fused_qkv_a_proj"]
    sharding = asking(tmp_path) | {"layers": layers}
    answers = {}
    for case, asked in (("plain", None), ("sharded", sharding)):
        with Server(
            dense, tmp_path / case, layout=layout, sharding=asked, arguments=arguments
        ) as server:
            answers[case] = ask(server, prompts), ask(server, prompts, model="adapter")
            if asked is not None:
                check_reports(tmp_path / "reports", dense, layers, layout=layout)
    base, adapted = answers["plain"]
    assert sum(a.token_ids != b.token_ids for a, b in zip(base, adapted, strict=True)) > 16
    check_identical(answers["sharded"][0], base)
    check_identical(answers["sharded"][1], adapted)


def test_drafting_with_an_mtp_layer(model, prompts, reference, tmp_path):
    drafting = with_draft_layer(model, tmp_path / "drafting")
    arguments = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')
    answers = {}
    for case, asked in (("plain", None), ("sharded", asking(tmp_path))):
        with Server(drafting, tmp_path / case, sharding=asked, arguments=arguments) as server:
            answers[case] = ask(server, prompts)
            if asked is not None:
                check_reports(tmp_path / "reports", drafting, LAYERS)
    assert [answer.token_ids for answer in answers["plain"]] == reference
    check_identical(answers["sharded"], answers["plain"])
    layers = re.findall(r"series (\S+), (\d+) layers", (tmp_path / "sharded").read_text())
    assert set(layers) == {("o_proj", "9"), ("q_b_proj", "9")}, "the draft layer stays out"
