"""Every pair of weights and activations: planned where vLLM builds it, refused where it raises."""

import pytest

from truth.pairs import COMPRESSED_INPUTS, COMPRESSED_WEIGHTS, Answers, Pair, compressed
from vllm_layershard.models.quantization.served import compressed_tensors

PAIRS = {
    f"compressed-tensors {what}: {weights} with {inputs}": Pair(
        what, compressed(weights, inputs, what)
    )
    for what in ("linears", "experts")
    for weights in COMPRESSED_WEIGHTS
    for inputs in COMPRESSED_INPUTS
}
TABLES = (compressed_tensors.LINEARS, compressed_tensors.EXPERTS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(PAIRS, tmp_path_factory.mktemp("pairs"))


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", PAIRS)
def test_planned_where_vllm_builds_it(name: str, answers: Answers) -> None:
    answers.check(name)


@pytest.mark.matrix(part="truth")
def test_vllm_chooses_the_classes_of_the_tables(answers: Answers) -> None:
    assert answers.schemes() == {row.scheme for rows in TABLES for row in rows if not row.why}
