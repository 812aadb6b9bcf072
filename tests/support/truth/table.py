"""The tables of docs/support.md: what the planner was compared with, from the very test cases,
and what vLLM has of what the planner refuses.

Run as a script with tests/support on the path, it writes the table into the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.vllm.truth import (
    test_truth_grouped,
    test_truth_hybrids,
    test_truth_mixed,
    test_truth_mla,
    test_truth_published,
    test_truth_quantized,
    test_truth_real,
    test_truth_wider,
)
from tests.vllm.truth.formats import test_truth_formats
from truth.compare import CONFIGS, Case
from vllm_layershard.models import read_model
from vllm_layershard.models.vllm_classes import said_of

PAGE = Path(__file__).parents[3] / "docs" / "support.md"
BEGIN = "<!-- made by tests/support/truth/table.py: begin -->\n"
END = "<!-- end -->\n"

REFUSED = {
    "DeepseekV4ForCausalLM": "DeepSeek-V4-Pro, V4-Flash",
    "KimiK3ForConditionalGeneration": "Kimi-K3",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMax-M3",
    "Gemma4ForConditionalGeneration": "Gemma-4",
    "NemotronHForCausalLM": "Nemotron-3 Nano, Super, Ultra",
    "Mistral3ForConditionalGeneration": "Mistral-Small-3.1, Ministral-3 with its vision tower",
    "MistralLarge3ForCausalLM": "Mistral-Large-3",
    "BailingMoeV2_5ForCausalLM": "Ling-2.6, Ring-2.6",
    "BailingMoeV3ForCausalLM": "Ling-3.0",
    "MiMoV2ForCausalLM": "MiMo-V2.5",
    "MiMoV2FlashForCausalLM": "MiMo-V2-Flash",
    "HYV3ForCausalLM": "Hy3",
    "HYV4ForCausalLM": "Hy4",
    "Glm5NextForConditionalGeneration": "GLM-5.3-Flash",
    "Step3p5ForCausalLM": "Step-3.5-Flash",
    "Step3p7ForConditionalGeneration": "Step-3.7-Flash",
    "Qwen4ExpForConditionalGeneration": "Qwen3.8-Flash-Next",
    "LagunaForCausalLM": "Laguna-S-2.1",
    "MuseGlimmerForConditionalGeneration": "Muse-Glimmer",
    "InklingForConditionalGeneration": "Inkling",
    "Llama4ForConditionalGeneration": "Llama-4 Scout, Maverick",
    "Ernie4_5_MoeForCausalLM": "ERNIE-4.5",
    "InternLM3ForCausalLM": "InternLM3",
    "TeleChat3ForCausalLM": "TeleChat3",
    "SeedOssForCausalLM": "Seed-OSS",
    "Olmo3ForCausalLM": "OLMo-3",
    "HunYuanMoEV1ForCausalLM": "Hunyuan-A13B",
    "MiniMaxM1ForCausalLM": "MiniMax-M1",
    "HunYuanForCausalLM": "Hunyuan-Large",
    "Qwen3ForSequenceClassification": "Qwen3-Reranker as a classifier",
    "TransformersForCausalLM": "any, with the backend stated as its class",
}
"""Architectures that the planner refuses, with models that people serve."""

SMALL = (
    test_truth_mla.CASES,
    test_truth_grouped.CASES,
    test_truth_hybrids.CASES,
    test_truth_quantized.CASES,
    test_truth_mixed.CASES,
    test_truth_formats.CASES,
    test_truth_wider.CASES,
)


def table() -> str:
    """Markdown, with the markers around it."""
    return "".join([BEGIN, *_families(), "\n", *_methods(), "\n", *_refused(), END])


def _families() -> Iterator[str]:
    yield "| vLLM's class | as published | scaled down: layouts compared |\n| --- | --- | --- |\n"
    small = [case for cases in SMALL for case in cases.values()]
    by_class: dict[str, list[str]] = {}
    for name, case in (test_truth_real.CASES | test_truth_published.CASES).items():
        by_class.setdefault(_architecture(case), []).append(name.rpartition("--")[2])
    for case in small:
        by_class.setdefault(_architecture(case), [])
    for architecture, models in by_class.items():
        layouts = sum(len(case.layouts) for case in small if _architecture(case) == architecture)
        yield f"| `{architecture}` | {', '.join(models) or '-'} | {layouts} |\n"


def _methods() -> Iterator[str]:
    yield "| quantisation | compared in |\n| --- | --- |\n"
    methods: dict[str, set[str]] = {}
    cases = test_truth_quantized.CASES | test_truth_mixed.CASES | test_truth_formats.CASES
    for name, case in cases.items():
        methods.setdefault(name.partition(" ")[2], set()).add(_architecture(case))
    for method, architectures in methods.items():
        yield f"| {method} | {_listed(architectures)} |\n"
    published = {name: read_model(name.replace("--", "/")) for name in test_truth_real.CASES}
    for method in sorted({model.quantization for model in published.values()}):
        names = [n.partition("--")[2] for n, m in published.items() if m.quantization == method]
        if method != "none":
            yield f"| `{method}`, as published | {', '.join(names)} |\n"


def _refused() -> Iterator[str]:
    yield "| refused | models | why |\n| --- | --- | --- |\n"
    for architecture, models in REFUSED.items():
        yield f"| `{architecture}` | {models} | {said_of(architecture)} |\n"


def _architecture(case: Case) -> str:
    if case.text_class is not None:
        return case.text_class
    if isinstance(case.config, str):
        return read_model(str(CONFIGS / f"{case.config}.json")).architecture
    (architecture,) = case.config["architectures"]
    return str(architecture)


def _listed(architectures: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(architectures))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + table() + rest.partition(END)[2])
