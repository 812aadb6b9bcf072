"""Every pair of weights and activations: planned where vLLM builds it, refused where it raises."""

import pytest

from truth.pairs import Answers, pairs_of, stated_pairs
from vllm_layershard.models.quantization.served import compressed_tensors, quark

PAIRS = pairs_of() | stated_pairs()
TABLES = (compressed_tensors.LINEARS, compressed_tensors.EXPERTS, quark.LINEARS, quark.EXPERTS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(PAIRS, tmp_path_factory.mktemp("pairs"))


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", PAIRS)
def test_planned_where_vllm_builds_it(name: str, answers: Answers) -> None:
    answers.check(name)


@pytest.mark.matrix(part="truth")
def test_vllm_chooses_the_classes_of_the_tables(answers: Answers) -> None:
    named = ("CompressedTensors", "Quark")
    assert {one for one in answers.schemes() if one.startswith(named)} == {
        row.scheme for rows in TABLES for row in rows if not row.why
    }
