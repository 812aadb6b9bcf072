"""Every bundled model, as it is published, on vLLM's own classes without memory: equal to the byte.

docs/support.md has a table made from these cases (truth_table.py).
"""

import pytest

from truth.compare import CONFIGS, LAYOUTS, Case, Truth, names

TEXT_CLASSES = {
    "Qwen--Qwen3.5-397B-A17B": "Qwen3_5MoeForCausalLM",
    "moonshotai--Kimi-K2.5": "DeepseekV3ForCausalLM",
}
"""Of models within models the language model is built."""

CASES = {
    path.stem: Case(path.stem, layouts=LAYOUTS, text_class=TEXT_CLASSES.get(path.stem))
    for path in sorted(CONFIGS.glob("*.json"))
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
