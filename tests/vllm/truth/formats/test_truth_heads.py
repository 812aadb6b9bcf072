"""Quantised heads of every family, tied ones, and those that stay as they are, to the byte."""

from dataclasses import replace

import pytest

from tests.vllm.truth import test_truth_grouped, test_truth_hybrids, test_truth_wider
from tests.vllm.truth.test_truth_mixed import _modelopt
from tests.vllm.truth.test_truth_quantized import AWQ, GPTQ, TOKENS, _compressed, _tensors
from truth.compare import Case, Truth, names

ONE = ((1, 1, False),)
WHOLE = _modelopt("FP8") | {"ignore": []}
HEADS = {
    "modelopt": WHOLE,
    "modelopt-nvfp4": _modelopt("NVFP4") | {"ignore": []},
    "gptq": GPTQ | {"lm_head": True},
    "awq": AWQ | {"lm_head": True},
    "ct": _compressed("float-quantized", _tensors(8, "channel"), TOKENS, ignore=[]),
}
HEADS["ct"]["config_groups"]["group_0"]["targets"] = ["Linear", "re:.*lm_head"]

PLAIN = {
    name: case
    for module in (test_truth_grouped, test_truth_hybrids, test_truth_wider)
    for name, case in module.CASES.items()
    if "fp8" not in name and "mxfp4" not in name and not case.refused
}
NOT_LOADED = ("gptq", "awq")
"""Packings of which vLLM's loader of gpt-oss passes over all experts: they are refused."""

SOME = ("llama", "llama-biased-tied", "qwen2-tied", "qwen3.5-dense-tied", "gpt-oss", "qwen3-next")


def _with(case: Case, quantization: object, **more: object) -> Case:
    changes = {**case.changes, "quantization_config": quantization, **more}
    return replace(case, changes=changes, layouts=ONE)


CASES = {f"whole {name}": _with(case, WHOLE) for name, case in PLAIN.items()} | {
    f"{name} {method}": _with(PLAIN[name], stated)
    for name in SOME
    for method, stated in HEADS.items()
    if method != "modelopt" and (name != "gpt-oss" or method not in NOT_LOADED)
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
