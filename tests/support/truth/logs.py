"""Public start-up logs of models and devices that were not used while developing.

`LOGS` are what servers logged, each with its source; the sizes of the models are those of their
configs: ai-dynamo/aiconfigurator and Ascend/msmodeling hold them, of DeepSeek-R1-Distill-Qwen-14B
those of Qwen2.5-14B. Run as a script with tests/support on the path, it writes the page's table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from truth.compare import CONFIGS
from truth.stated import QWEN2_5_72B, QWEN3_VL_4B
from vllm_layershard.models import Deployment, Model, read_model
from vllm_layershard.plan import ParallelLayout

GIB: Final = 1 << 30
PAGE: Final = Path(__file__).parents[3] / "docs" / "benchmarks" / "2026-11-startup-logs.md"
BEGIN: Final = "<!-- made by tests/support/truth/logs.py: begin -->\n"
END: Final = "<!-- end -->\n"


class Log(NamedTuple):
    """One server. `weights`: GiB that it logged for the weights of a rank, None: it did not.

    `cache`: GiB and the tokens that fill them, in sequences of `longest`; `digits` is half of the
    last digit of those GiB. `transform` computes bytes that this server has otherwise, and why.
    """

    source: str
    model: str
    config: Mapping[str, Any]
    device: str
    version: str
    tp: int = 1
    weights: float | None = None
    cache: tuple[float, int] | None = None
    digits: float = 0.005
    longest: int | None = None
    kv_cache_dtype: str = "auto"
    transform: tuple[str, Callable[[Model], int]] | None = None

    @property
    def deployment(self) -> Deployment:
        """Its layout."""
        return Deployment(ParallelLayout(tp=self.tp))

    def read(self) -> Model:
        """The model as the planner reads it."""
        return _read(json.dumps(dict(self.config)))

    def planned(self) -> int:
        """Bytes of a rank's weights, with what this server has otherwise."""
        model = self.read()
        total = model.weight_bytes(self.deployment, rank=0).total
        return total + (self.transform[1](model) if self.transform else 0)


@cache
def _read(config: str) -> Model:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        path.write_text(config)
        return read_model(str(path))


def _bundled(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return read


def _dense(hidden: int, width: int, layers: int, heads: int, **more: object) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    of_heads = {"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128}
    return _bundled("Qwen--Qwen3-32B") | sizes | of_heads | {"layer_types": None} | more


def _gpt_oss_unpadded(model: Model) -> int:
    """Experts of 2,880 x 2,880, where the planner rounds up to 3,072 x 2,944 as Marlin does."""
    plain, padded = 2880 * 2880, 3072 * 2944
    weights = 24 * 32 * 3 * (plain - padded) * 17 // 32
    biases = 24 * 32 * 2 * (2 * (2880 - 2944) + (2880 - 3072))
    return weights + biases


_INT8: Final = {"num_bits": 8, "type": "int", "symmetric": True}
_W8A8: Final = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}
_QWEN3_30B: Final = _bundled("Qwen--Qwen3-235B-A22B") | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
}
_QWEN36_35B: Final = _bundled("Qwen--Qwen3.5-397B-A17B")["text_config"] | {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "hidden_size": 2048,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 40,
    "shared_expert_intermediate_size": 512,
}
_GPT_OSS_20B: Final = _bundled("openai--gpt-oss-120b") | {
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "layer_types": None,
}
_QWEN3_VL_8B: Final = QWEN3_VL_4B | {
    "text_config": QWEN3_VL_4B["text_config"] | {"hidden_size": 4096, "intermediate_size": 12288}
}

LOGS: Final = (
    Log(
        "vllm-project/vllm issue 17327",
        "Qwen3-30B-A3B",
        _QWEN3_30B,
        "four GPUs, not named",
        "0.8.5",
        tp=4,
        weights=14.2474,
    ),
    Log(
        "vllm-project/vllm-ascend issue 9372",
        "Qwen3-14B",
        _dense(5120, 17408, 40, 40),
        "an Ascend vNPU of 32 GB",
        "not said",
        weights=27.5376,
    ),
    Log(
        "vllm-project/vllm-ascend issue 2963",
        "Qwen3-Embedding-0.6B",
        _dense(1024, 3072, 28, 16, vocab_size=151669, tie_word_embeddings=True),
        "an Ascend NPU",
        "0.10.2rc1",
        weights=1.1195,
    ),
    Log(
        "vllm-project/vllm-ascend issue 2976",
        "Qwen3-Next-80B-A3B-Instruct",
        _bundled("Qwen--Qwen3-Next-80B-A3B-Instruct"),
        "four Ascend NPUs",
        "0.10.2rc1",
        tp=4,
        weights=37.2362,
    ),
    Log(
        "vllm-project/vllm pull request 12569",
        "Meta-Llama-3.1-70B-Instruct-quantized.w8a8",
        _bundled("meta-llama--Meta-Llama-3.1-70B") | {"quantization_config": _W8A8},
        "a GPU, not named",
        "January 2025",
        weights=67.7229,
    ),
    Log(
        "vllm-project/vllm issue 13061",
        "DeepSeek-R1-Distill-Qwen-14B",
        QWEN2_5_72B
        | {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "max_window_layers": 48,
            "num_attention_heads": 40,
            "num_hidden_layers": 48,
        },
        "2 x RTX 4090",
        "February 2025",
        tp=2,
        weights=13.9476,
    ),
    Log(
        "myoceane.fr, ai-vllm-a100-gemma-4",
        "gpt-oss-20b",
        _GPT_OSS_20B,
        "A100",
        "0.19.0",
        weights=13.72,
    ),
    Log(
        "vllm-project/vllm issue 22331",
        "gpt-oss-20b",
        _GPT_OSS_20B,
        "RTX 3090",
        "August 2025",
        weights=12.8848,
        transform=("experts as they are stored, not rounded up", _gpt_oss_unpadded),
    ),
    Log(
        "eugr/spark-vllm-docker issue 396",
        "MiniMax-M2.7-AWQ",
        _bundled("MiniMaxAI--MiniMax-M2") | {"quantization_config": None},
        "2 x GB10",
        "0.29.1rc1",
        tp=2,
        cache=(23.25, 196_608),
    ),
    Log(
        "xorbitsai/inference issue 4926",
        "Qwen3-VL-Instruct (8B; 4B has the same cache)",
        _QWEN3_VL_8B,
        "a GPU, not named",
        "not said",
        cache=(36.0, 262_144),
        digits=0.05,
    ),
    Log(
        "noonghunna/club-3090 issue 612",
        "Qwen3.6-35B-A3B NVFP4",
        _QWEN36_35B,
        "RTX 5090",
        "0.24.0",
        cache=(5.98, 567_978),
        longest=131_072,
        kv_cache_dtype="fp8",
    ),
    Log(
        "noonghunna/club-3090 issue 652",
        "Qwen3.6-35B-A3B NVFP4",
        _QWEN36_35B,
        "RTX 5090",
        "0.24.0",
        cache=(6.01, 569_878),
        longest=131_072,
        kv_cache_dtype="fp8",
    ),
)


def tokens_of(log: Log, gib: float) -> int:
    """Tokens that so many GiB hold by the planner, in the server's longest sequences."""
    model = log.read()
    if log.longest is not None:
        model = model._replace(blueprint=replace(model.blueprint, longest=log.longest))
    layers = range(model.num_layers)
    return model.cache_tokens(int(gib * GIB), log.kv_cache_dtype, layers, log.deployment)


def table() -> str:
    """Markdown, with the markers around it."""
    return "".join([BEGIN, *_rows(), END])


def _rows() -> Iterator[str]:
    yield (
        "| source | model | device | vLLM | tp | weights logged | planned | cache logged "
        "| planned |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for log in LOGS:
        weights, cached = ("-", "-"), ("-", "-")
        if log.weights is not None:
            planned = log.planned() / GIB
            off = planned / log.weights - 1
            weights = f"{log.weights} GiB", f"{planned:.4f} GiB ({off:+.2%})"
        if log.cache is not None:
            gib, tokens = log.cache
            cached = f"{gib} GiB hold {tokens:,} tokens", f"{tokens_of(log, gib):,} tokens"
        yield (
            f"| {log.source} | {log.model} | {log.device} | {log.version} | {log.tp} | "
            f"{weights[0]} | {weights[1]} | {cached[0]} | {cached[1]} |\n"
        )


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + table() + rest.partition(END)[2])
