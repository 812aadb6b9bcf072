"""What vLLM decides on CUDA, for every kind of graph: no graph ends between start and wait.

vLLM's own `create_engine_config` decides, with its CUDA platform; no GPU is needed for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hosted.child import run_child
from hosted.tiny import CONFIG, write_config

DECIDE = """
import json, os, sys
from dataclasses import replace
from hosted.cuda import stand_in

stand_in()
from vllm.config.vllm import DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel
from vllm_layershard.hosts.graphs.breaks import end_graphs_at_movements
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.moves import ops as moves

# The classes of models for CUDA cannot be imported here, and nothing of them is asked.
known = ModelRegistry.models["DeepseekV3ForCausalLM"].inspect_model_cls()
_LazyRegisteredModel.inspect_model_cls = lambda self: replace(known, architecture=self.class_name)

BREAKABLE, found = "VLLM_USE_BREAKABLE_CUDAGRAPH", []
for arguments, breakable in json.loads(sys.argv[1]):
    os.environ.pop(BREAKABLE, None)
    if breakable is not None:
        os.environ[BREAKABLE] = breakable
    try:
        config = EngineArgs(
            data_parallel_size=2, skip_tokenizer_init=True,
            additional_config={"layer_sharding": ["o_proj"]}, **arguments,
        ).create_engine_config()
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
        continue
    assert config.device_config.device_type == "cuda"
    graphs = config.compilation_config
    end_graphs_at_movements()
    found.append([
        graphs.cudagraph_mode.name,
        [op for op in graphs.splitting_ops if op.startswith("layershard")],
        bool(graphs.splitting_ops),
        ops._work["reach"] is not ops._start_at
        and ops._work["wait"] is not ops._wait_for
        and moves._work["linear"] is not moves._compute,
    ])
result = [found, sorted(DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES)]
"""

OPS = ["layershard::reach", "layershard::wait"]
PIECES, WHOLE, BREAKS = (OPS, True, False), ([], False, False), ([], False, True)
"""Which ops of ours cut pieces, whether anything does, and whether all of them end graphs."""

SPARSE = CONFIG | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_topk": 64,
    "index_n_heads": 4,
    "index_head_dim": 32,
}

MODEL_TYPES = {
    "DeepseekV32ForCausalLM": "deepseek_v32",
    "DeepseekV4ForCausalLM": "deepseek_v4",
    "DeepseekV4ForConditionalGeneration": "deepseek_v4",
    "DeepseekV41ForCausalLM": "deepseek_v41",
    "Dots3NoteForCausalLM": "dots3_note",
    "Glm5NextForCausalLM": "glm5_next_text",
    "Glm5NextForConditionalGeneration": "glm5_next",
    "GlmMoeDsaForCausalLM": "glm_moe_dsa",
    "HYV4ForCausalLM": "hy_v4",
    "InklingForCausalLM": "inkling_model",
    "InklingForConditionalGeneration": "inkling_mm_model",
    "KimiK3ForConditionalGeneration": "kimi_k3",
    "KimiLinearForCausalLM": "kimi_linear",
    "MiniMaxM3SparseForCausalLM": "minimax_m3_vl",
    "MiniMaxM3SparseForConditionalGeneration": "minimax_m3_vl",
    "Qwen4ExpForCausalLM": "qwen4_exp_text",
    "Qwen4ExpForConditionalGeneration": "qwen4_exp",
}


REPLAYS = {"text_config": {"kv_source_layer_ids": [1, 3]}}
WITHOUT_REPLAY = {"swa_bounded_replay": False}
"""A DeepSeek-V4.1 replays the layers behind its last KV source, unless that is turned off."""


MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")


def decided(*cases: tuple[dict, str | None]) -> tuple[list, list[str]]:
    """What is decided of each case, and the architectures whose graphs vLLM breaks by default."""
    found, breakable = run_child(DECIDE, json.dumps(cases))
    return found, breakable


def graphs(model: Path | str, kind: str, **beside: object) -> dict:
    return {"model": str(model), "compilation_config": {"cudagraph_mode": kind, **beside}}


def test_every_architecture_whose_graphs_vllm_breaks_has_them_end_at_our_ops(tmp_path):
    configs = {
        architecture: {"architectures": [architecture], "model_type": model_type}
        for architecture, model_type in MODEL_TYPES.items()
    } | {"DeepseekV32ForCausalLM": SPARSE}
    configs["DeepseekV41ForCausalLM"] |= REPLAYS
    models = {name: str(write_config(tmp_path / name, each)) for name, each in configs.items()}
    cases = [(name, mode) for name in models for mode in MODES]
    asked = [(graphs(models[name], mode) | WITHOUT_REPLAY, None) for name, mode in cases]
    found, breakable = decided(*asked)
    assert set(configs) == {name for name in breakable if "MTP" not in name}, "drafts aside"
    assert dict(zip(cases, found, strict=True)) == {each: [each[1], *BREAKS] for each in cases}


def test_a_replay_of_the_last_layers_alone_is_refused_by_name(tmp_path):
    """vLLM captures them without the layers before, which start their weights."""
    config = CONFIG | REPLAYS | {"architectures": ["DeepseekV41ForCausalLM"]}
    model = str(write_config(tmp_path / "model", config | {"model_type": "deepseek_v41"}))
    (said, accepted), _ = decided(
        ({"model": model}, None), ({"model": model, **WITHOUT_REPLAY}, None)
    )
    assert said == (
        "HostError: layer_sharding: cannot be combined with the decoder replay of DeepSeek-V4.1 "
        "(--no-swa-bounded-replay turns it off); use one of the two"
    )
    assert accepted == ["FULL_AND_PIECEWISE", *BREAKS]


def test_these_are_all_modes_that_vllm_has():
    (modes,) = run_child(
        "from vllm.config import CUDAGraphMode\nresult = [[*CUDAGraphMode.__members__]]"
    )
    assert {*modes} == {*MODES}


@pytest.mark.parametrize(
    ("config", "breakable", "ends"),
    [
        (CONFIG, None, PIECES),
        (CONFIG, "1", BREAKS),
        (SPARSE, None, BREAKS),
        (SPARSE, "0", PIECES),
    ],
    ids=["in pieces", "broken by the user", "broken by default", "in pieces by the user"],
)
def test_in_every_mode_graphs_end_at_both_ops_or_hold_a_whole_forward(
    tmp_path, config, breakable, ends
):
    model = write_config(tmp_path / "model", config)
    found, _ = decided(*((graphs(model, mode), breakable) for mode in MODES))
    assert found == [[mode, *ends] for mode in MODES]


def test_vllm_tells_inductor_to_cut_at_both_ops(tmp_path):
    model = write_config(tmp_path / "model", CONFIG)
    modes = ("PIECEWISE", "FULL_AND_PIECEWISE")
    asked = [(graphs(model, mode, use_inductor_graph_partition=True), None) for mode in modes]
    fused = {"use_inductor_graph_partition": True, "pass_config": {"fuse_attn_quant": True}}
    asked += [(graphs(model, mode, **fused), None) for mode in modes]
    assert decided(*asked)[0] == [[mode, *PIECES] for mode in (*modes, *modes)]


def test_without_pieces_vllm_captures_whole_forwards_and_so_do_we(tmp_path):
    model = write_config(tmp_path / "model", CONFIG)
    found, _ = decided(
        *((graphs(model, mode, splitting_ops=[]), None) for mode in MODES),
        *((graphs(model, mode, mode=0), None) for mode in ("FULL", "FULL_DECODE_ONLY")),
        (graphs(model, "FULL_AND_PIECEWISE", pass_config={"fuse_attn_quant": True}), None),
        ({"model": str(model), "enforce_eager": True}, None),
    )
    kept = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL"}
    assert found == [
        *([kept.get(mode, mode), *WHOLE] for mode in MODES),
        ["FULL", *WHOLE],
        ["FULL_DECODE_ONLY", *WHOLE],
        ["FULL", *WHOLE],
        ["NONE", *WHOLE],
    ]
