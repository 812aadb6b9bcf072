"""Targets that name only some of vLLM's classes of linears, to the byte of its own."""

import pytest

from tests.vllm.truth.test_truth_quantized import (
    DENSE,
    EXPERTS,
    LATENT,
    TOKENS,
    _compressed,
    _tensors,
)
from truth.compare import Case, Truth, names

ONE = ((1, 1, False),)


def _by_class(*targets: str) -> dict[str, object]:
    stated = _compressed("float-quantized", _tensors(8, "channel"), TOKENS)
    stated["config_groups"]["group_0"]["targets"] = list(targets)
    return stated


CLASSES = {
    "rows": _by_class("RowParallelLinear"),
    "queries": _by_class("QKVParallelLinear"),
    "columns": _by_class("ColumnParallelLinear"),
    "whole": _by_class("ReplicatedLinear", "MergedColumnParallelLinear", "RoutedExperts"),
    "pattern": _by_class("re:(Row|QKV)ParallelLinear"),
    "part": _by_class("parallellinear"),
}
MODELS = {
    "dense": ("Qwen--Qwen3-32B", DENSE),
    "experts": ("Qwen--Qwen3-235B-A22B", EXPERTS),
    "latent": ("deepseek-ai--DeepSeek-V3", LATENT),
}
NOTHING = {"experts columns", "latent queries"}
"""No linear of these models is of that class: refused, as a name that nothing bears is."""

CASES = {
    f"{model} {kind}": Case(config, sizes | {"quantization_config": stated}, ONE)
    for model, (config, sizes) in MODELS.items()
    for kind, stated in CLASSES.items()
    if f"{model} {kind}" not in NOTHING
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
