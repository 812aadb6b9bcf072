"""The planner's parameter counts, to the parameter.

The expected numbers come from a count written separately, against each model's published total
(configs/PROVENANCE.md has both).
"""

from __future__ import annotations

import pytest

from vllm_layershard.models import bundled_names, read_model

COUNTED = {
    "MiniMaxAI/MiniMax-M2": 228_689_764_864,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-235B-A22B-FP8": 235_093_634_560,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "Qwen/Qwen3.5-397B-A17B": 396_346_350_336,
    "deepseek-ai/DeepSeek-R1": 671_026_419_200,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,
    "deepseek-ai/DeepSeek-V3.1": 671_026_419_200,
    "deepseek-ai/DeepSeek-V3.2": 671_877_944_064,
    "inclusionAI/Ling-1T": 999_705_328_640,
    "meituan-longcat/LongCat-Flash-Chat": 560_664_980_480,
    "meta-llama/Meta-Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Meta-Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "moonshotai/Kimi-K2-Instruct": 1_026_408_232_448,
    "moonshotai/Kimi-K2.5": 1_026_408_232_448,
    "openai/gpt-oss-120b": 116_829_156_672,
    "zai-org/GLM-4.7": 352_797_829_024,
    "zai-org/GLM-5": 743_911_218_432,
    "zai-org/GLM-5-FP8": 743_911_218_432,
    "zai-org/GLM-5.1": 743_911_218_432,
    "zai-org/GLM-5.1-FP8": 743_911_218_432,
    "zai-org/GLM-5.2": 743_377_019_904,
    "zai-org/GLM-5.2-FP8": 743_377_019_904,
}


def test_every_bundled_model_is_counted() -> None:
    assert tuple(COUNTED) == bundled_names()


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_as_many_as_a_separate_count_has(name: str) -> None:
    assert read_model(name).parameters == COUNTED[name]
