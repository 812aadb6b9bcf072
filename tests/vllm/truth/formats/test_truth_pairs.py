"""Some of the pairs of weights and activations: planned where vLLM builds them, refused where not.

All of them are in test_truth_activations.py.
"""

import pytest

from truth.pairs import Answers, pairs_of

PAIRS = pairs_of(("none", "fp8-token", "fp8-tensor", "int8-token", "fp8-channel-dynamic", "mxfp4"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(PAIRS, tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("name", PAIRS)
def test_planned_where_vllm_builds_it(name: str, answers: Answers) -> None:
    answers.check(name)
