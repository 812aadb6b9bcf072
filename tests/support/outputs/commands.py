"""The commands whose outputs are compared: every bundled model, every view, refusals."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

LAYOUTS = ("--dp 16 --ep", "--dp 4 --tp 2 --ep", "--dp 2 --pp 3 --ep", "--tp 4 --pcp 2")
LARGE = ("DeepSeek-V3", "Kimi-K2-Instruct", "GLM-5-FP8", "MiniMax-M2", "Qwen3-235B-A22B-FP8")
DENSE = ("Meta-Llama-3.1-70B", "Qwen3-32B")
DENSE_LAYOUTS = ("--dp 2", "--dp 8", "--dp 2 --pp 2 --tp 2", "--tp 2 --pcp 2")

VIEWS = """
plan --model DeepSeek-V3 --timeline --ledger
plan --model DeepSeek-V3 --hardware 910C --dp 16 --ep --tokens 16384
plan --model DeepSeek-V3 --hardware 910C --dp 16 --ep --tokens 16384 --json
plan --model DeepSeek-V3 --layers auto
plan --model DeepSeek-V3 --layers auto --hide-in decode --json
plan --model DeepSeek-V3 --prefetch-step 3 --layer-stride 2
plan --model DeepSeek-V3 --keep-first --json
plan --model DeepSeek-V3 --placement striped
plan --model DeepSeek-V3 --placement striped --slice-bytes 1048576 --json
plan --model DeepSeek-V3 --placement replicated
plan --model DeepSeek-V3 --transport pull
plan --model DeepSeek-V3 --hardware A100 --dp 8 --ep
plan --model DeepSeek-V3 --hardware A100 --dp 8 --ep --json
plan --model DeepSeek-V3 --kv-cache-dtype fp8 --batch 256 --context 8192
plan --model DeepSeek-V3 --check
plan --model DeepSeek-V3 --check --hide-in prefill,decode
plan --model DeepSeek-V3 --html page.html --trace trace.json
plan --model DeepSeek-V3 --move activations
plan --model DeepSeek-V3 --move auto --json
plan --model DeepSeek-V3 --move auto --move-weights-from 100 --placement striped --json
plan --model DeepSeek-V3 --move activations --check --hide-in prefill,decode
plan --model Qwen3-235B-A22B --hardware RTX-PRO-6000 --move auto --timeline
plan --model Qwen3-235B-A22B --hardware RTX-PRO-6000 --move auto --html page.html --trace trace.json
plan --model Qwen3-32B --dp 4
plan --model ./tiny --dp 2
plan --model ./tiny --dp 2 --json
plan --model DeepSeek-V3 --hardware mine.json
plan --model DeepSeek-V3 --hardware lacking.json
map --model DeepSeek-V3
map --model DeepSeek-V3 --layers o_proj --json
map --model DeepSeek-V3 --placement striped --dp 4 --ep
map --model Meta-Llama-3.1-70B --dp 2 --pp 2
map --model DeepSeek-V3 --move auto --move-weights-from 100 --placement striped --json
compare --model DeepSeek-V3
compare --model DeepSeek-V3 --json
compare --model Meta-Llama-3.1-70B --hardware A100
compare --model DeepSeek-V3 --move auto
compare --model DeepSeek-V3 --move activations --layout dp8+ep+shard --layout dp8+ep+striped --json
check --model DeepSeek-V3 --dp 8 '{"layer_sharding": ["o_proj", "q_b_proj"]}'
check --model DeepSeek-V3 --dp 8 --json '{"layer_sharding": ["o_proj", "q_b_proj"]}'
check --model DeepSeek-V3 --dp 8 '{"layer_sharding": {"layers": ["o_proj"], "move": "activations"}}'
models
models --json
hardware
hardware --json
hardware H200
hardware 910C --json
--version
--help
plan --help
map --help
check --help
compare --help
"""

REFUSALS = """
plan
plan --model NoSuchModel
plan --model DeepSeek-V3 --hardware NoSuchDevice
plan --model DeepSeek-V3 --layers kv_b_proj
plan --model DeepSeek-V3 --layers o_pro
plan --model DeepSeek-V3 --layers o_proj,o_proj
plan --model DeepSeek-V3 --layers auto,o_proj
map --model DeepSeek-V3 --layers auto
plan --model DeepSeek-V3 --prefetch-step 99
plan --model DeepSeek-V3 --prefetch-step -1
plan --model DeepSeek-V3 --layer-stride 0
plan --model DeepSeek-V3 --layer-stride 64
plan --model DeepSeek-V3 --placement striped --transport broadcast
plan --model DeepSeek-V3 --dp 1
plan --model DeepSeek-V3 --tp 3
plan --model DeepSeek-V3 --dp 0
plan --model Qwen3-32B --dp 4 --transport broadcast
plan --model Qwen3-32B --dp 4 --ep
plan --model DeepSeek-V3 --tokens none
plan --model DeepSeek-V3 --kv-cache-dtype int3
plan --model DeepSeek-V3 --transport pull --dp 32 --ep
plan --model DeepSeek-V3 --hardware wrong.json
plan --model ./broken --dp 2
plan --model ./foreign --dp 2
plan --model DeepSeek-V3 --html same --trace same
check --model DeepSeek-V3 --dp 8 '{"layer_sharding": {"layers": ["o_proj"], "prefetch": 2}}'
check --model DeepSeek-V3 --dp 8 '{"layer_sharding": 3}'
check --model DeepSeek-V3 --dp 8 'not JSON'
plan --model DeepSeek-V3 --move tokens
plan --model DeepSeek-V3 --move-weights-from 8
plan --model DeepSeek-V3 --move auto --placement replicated
plan --model DeepSeek-V3 --tp 2 --dp 4 --ep --move activations
plan --model Qwen3-32B --dp 2 --move activations
map --model DeepSeek-V3 --move auto
compare --model DeepSeek-V3 --layout tp8 --move auto
hardware NoSuchDevice
compare --model NoSuchModel
nonsense
"""


def commands(models: list[str]) -> list[str]:
    """Every command, without the program's name; `models` are the bundled ones."""
    plans = [f"plan --model {model}" for model in models]
    layouts = [
        f"plan --model {model} {layout} --json"
        for names, sizes in ((LARGE, LAYOUTS), (DENSE, DENSE_LAYOUTS))
        for model in names
        for layout in sizes
    ]
    lines = [*plans, *(f"{plan} --json" for plan in plans), *layouts]
    return lines + [line for text in (VIEWS, REFUSALS) for line in text.strip().splitlines()]


def words(command: str) -> list[str]:
    """The arguments of a command."""
    return shlex.split(command)


def write_inputs(folder: Path) -> None:
    """The models and devices that the commands name by their paths."""
    tiny = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 5,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    foreign = tiny | {"architectures": ["NobodyForCausalLM"]}
    for name, text in (
        ("tiny", json.dumps(tiny)),
        ("broken", json.dumps(tiny)[:-1]),
        ("foreign", json.dumps(foreign)),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    (folder / "mine.json").write_text(json.dumps({"base": "H200", "memory_bytes": 2**40}))
    (folder / "lacking.json").write_text(json.dumps({"base": "910C", "node_size": 2}))
    (folder / "wrong.json").write_text(json.dumps({"base": "H200", "memory": 1}))
