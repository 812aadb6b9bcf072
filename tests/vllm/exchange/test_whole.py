"""A real vLLM model on two tensor-parallel ranks, whose o_proj is whole behind a token exchange."""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hosted.engines import RANKS, load, run_engines
from recital import model_path
from serving.biased import biased_llama
from serving.weights import with_other_weights

COUNTS = (1, 2, 3, 7, 64)
"""T - 1, T, T + 1, a prime, and many."""

OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "striped": {"placement": "striped"},
    "pulled": {"transport": "pull"},
    "control": {"placement": "replicated"},
    "first kept": {"keep_first": True},
    "every second": {"layer_stride": 2},
    "two ahead": {"prefetch_step": 2},
}


def o_proj(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    return model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")


def started(config: Any, options: dict[str, Any]) -> torch.nn.Module:
    config.compilation_config.static_forward_context.clear()
    asked = {"layers": ["o_proj"], "token_exchange": ["o_proj"], "verify": True}
    config.additional_config = {"layer_sharding": asked | options}
    return load(config, lambda model: None)


@torch.inference_mode()
def every_option(rank: int, config: Any) -> dict[str, dict]:
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    layers = range(config.model_config.hf_text_config.num_hidden_layers)
    found = {}
    for name, options in OPTIONS.items():
        model = started(config, options)
        from vllm_layershard.runtime.ops import _boundaries, bound_series

        (series,) = (s for s in bound_series() if s.name == "o_proj")
        right, shares = [], []
        for count in COUNTS:
            series.slots.poison()
            rows_before = series.counters.exchanged_rows
            for layer in layers:
                if f"model.layers.{layer}" in _boundaries:
                    x = torch.zeros(1)
                    torch.ops.layershard.reach(x, f"model.layers.{layer}")
                linear = o_proj(model, layer)
                rows = rows_of(count, linear.input_size, layer)
                weight = checkpoint[f"model.layers.{layer}.self_attn.o_proj.weight"]
                expected = chunk_by_chunk(rows, weight)
                result, bias = linear(rows.chunk(RANKS, dim=1)[rank].contiguous())
                right.append(torch.equal(result, expected) and bias is None)
            shares.append(series.counters.exchanged_rows - rows_before)
        plan = series.plan
        exchanges = series.counters.exchanges
        batched = o_proj(model, layers[-1])(rows[None, :, : rows.shape[1] // RANKS])[0]
        found[name] = {
            "right": all(right),
            "moved layers": plan.series.layer_ids,
            "shares": shares,
            "exchanges": exchanges,
            "batched": list(batched.shape) == [1, COUNTS[-1], linear.output_size],
            "group": series.group.ranks,
            "owned": plan.owned_layers(rank),
            "resident": series.resident_bytes() - plan.ledger.resident_bytes[rank],
            "slots": series.slots.nbytes() - plan.ledger.slot_bytes,
            "takes quantised": takes_quantised(o_proj(model, layers[0])),
            "methods": sorted({type(o_proj(model, i).quant_method).__name__ for i in layers}),
        }
    return found


def takes_quantised(linear: Any) -> bool:
    """Whether vLLM would hand it an activation that is quantised, if its kernel could take one."""
    from vllm.model_executor.layers.fusion.quant_activation import get_input_quant_key
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym

    linear._input_quant_key = kFp8StaticTensorSym
    return get_input_quant_key(linear) is not None


def rows_of(count: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def chunk_by_chunk(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    share = math.ceil(len(rows) / RANKS)
    padded = torch.cat([rows, rows.new_zeros(share * RANKS - len(rows), rows.shape[1])])
    products = [torch.nn.functional.linear(chunk, weight, bias) for chunk in padded.split(share)]
    return torch.cat(products)[: len(rows)]


@pytest.mark.parametrize("kind", ["experts", "dense"])
def test_every_placement_computes_the_whole_product(kind):
    """MLA and GQA: each rank's share of rows, chunk with chunk to the bit, and the plan's bytes."""
    for seen in run_engines(model_path(kind), {"layers": ["o_proj"]}, every_option, tp=2):
        assert not isinstance(seen, str), seen
        for name, one in seen.items():
            layers = one["moved layers"]
            assert one["right"], name
            assert one["batched"], "as vLLM's Transformers backend calls it"
            assert one["group"] == (0, 1)
            assert one["shares"] == [len(layers) * math.ceil(count / RANKS) for count in COUNTS]
            assert one["exchanges"] == len(layers) * len(COUNTS)
            assert (one["resident"], one["slots"]) == (0, 0), name
            assert not one["takes quantised"], "what is exchanged is a tensor"
            assert one["methods"] == ["ExchangedLinearMethod"]
        assert seen["every second"]["moved layers"] == seen["as it comes"]["moved layers"][::2]
        assert seen["first kept"]["moved layers"] == seen["as it comes"]["moved layers"][1:]


@torch.inference_mode()
def of_two_engines(rank: int, config: Any) -> dict[str, Any]:
    model = load(config, lambda model: None)
    from vllm_layershard.runtime.ops import bound_series

    (series,) = bound_series()
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    linear = o_proj(model, 0)
    torch.ops.layershard.reach(torch.zeros(1), "model.layers.0")
    rows = rows_of(3 + rank // RANKS, linear.input_size, rank // RANKS)  # of its engine's own
    result, _ = linear(rows.chunk(RANKS, dim=1)[rank % RANKS].contiguous())
    expected = chunk_by_chunk(rows, checkpoint["model.layers.0.self_attn.o_proj.weight"])
    directory = config.additional_config["layer_sharding"]["report_dir"]
    report = json.loads(Path(directory, f"layershard-rank{rank}.json").read_text())
    return {
        "right": torch.equal(result, expected),
        "moves by": series.transport_name,
        "group": series.group.ranks,
        "owned": list(series.plan.owned_layers(rank % RANKS)),
        "reported": [report["rank"], report["series"][0]["group_ranks"]],
        "pid": report["process"]["pid"] == os.getpid(),
    }


def test_engines_of_a_dense_model_share_each_within_itself(tmp_path):
    """Each with other tokens, and each rank with a report of its own."""
    asked = {"layers": ["o_proj"], "token_exchange": ["o_proj"], "report_dir": str(tmp_path)}
    found = run_engines(model_path("dense"), asked, of_two_engines, tp=RANKS, dp=2)
    for rank, seen in enumerate(found):
        engine = rank // RANKS * RANKS
        assert seen == {
            "right": True,
            "moves by": "broadcast",
            "group": (0, 1),
            "owned": [layer for layer in range(7) if layer % RANKS == rank % RANKS],
            "reported": [rank, [engine, engine + 1]],
            "pid": True,
        }


@torch.inference_mode()
def reloaded(rank: int, config: Any, other: str) -> list[bool]:
    model = load(config, lambda model: None)
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    with torch.device("cpu"):
        reload_weights(config, model, None, other, is_checkpoint_format=True)
    checkpoint = load_file(f"{other}/model.safetensors")
    right = []
    for layer in range(config.model_config.hf_text_config.num_hidden_layers):
        torch.ops.layershard.reach(torch.zeros(1), f"model.layers.{layer}")
        linear = o_proj(model, layer)
        rows = rows_of(5, linear.input_size, layer)
        result, _ = linear(rows.chunk(RANKS, dim=1)[rank].contiguous())
        weight = checkpoint[f"model.layers.{layer}.self_attn.o_proj.weight"]
        right.append(torch.equal(result, chunk_by_chunk(rows, weight)))
    return right


def test_a_reload_gives_whole_weights(tmp_path):
    """A weight that is made anew is loaded whole again, on every rank."""
    trained = model_path("dense")
    other = with_other_weights(trained, tmp_path / "other", ("o_proj",))
    asked = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}
    inspect = functools.partial(reloaded, other=str(other))
    assert run_engines(trained, asked, inspect, tp=RANKS) == [[True] * 7] * RANKS


@torch.inference_mode()
def biased(rank: int, config: Any) -> list[bool]:
    model = load(config, lambda model: None)
    checkpoint = load_file(f"{config.model_config.model}/model.safetensors")
    right = []
    for layer in range(config.model_config.hf_text_config.num_hidden_layers):
        torch.ops.layershard.reach(torch.zeros(1), f"model.layers.{layer}")
        linear = o_proj(model, layer)
        stored = f"model.layers.{layer}.self_attn.o_proj"
        weight, bias = checkpoint[f"{stored}.weight"], checkpoint[f"{stored}.bias"]
        rows = rows_of(5, linear.input_size, layer)
        result, left = linear(rows.chunk(RANKS, dim=1)[rank].contiguous())
        right.append(torch.equal(result, chunk_by_chunk(rows, weight, bias)) and left is None)
        right.append(bool(bias.any()))
    return right


def test_a_bias_is_added_to_every_ranks_rows(tmp_path):
    """8220: it was missing on the ranks above 0. Llama with `attention_bias`."""
    model = biased_llama(model_path("dense"), tmp_path / "biased")
    asked = {"layers": ["o_proj"], "token_exchange": ["o_proj"]}
    assert run_engines(model, asked, biased, tp=RANKS) == [[True] * 10] * RANKS
