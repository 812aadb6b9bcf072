"""The planner reads the fields of a config that give linears a bias in vLLM's own classes, alone.

Of every config that is planned each such field of any family becomes true in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from truth.compare import Case, Truth, names
from truth.published import PUBLISHED
from vllm_layershard.models import families

ONE = ((1, 1, False),)
TWO = ((1, 1, False), (2, 1, False))

FIELDS = (
    *("attention_bias", "qkv_bias", "bias", "mlp_bias"),
    *("use_bias", "use_qkv_bias", "use_routing_bias", "moe_router_enable_expert_bias"),
)
"""Those that any family reads, whether or not it is this one."""

PARTS = {"kimi_k25": "DeepseekV3ForCausalLM", "qwen3_5_moe": "Qwen3_5MoeForCausalLM"}
"""Of these the language model's class is built alone: the one around it needs more packages."""


UNREDUCED = "When not reduce the results, adding bias to the results can lead to incorrect results"
REFUSED = {("bailing_moe", "use_bias"): UNREDUCED, ("bailing_moe_v2", "use_bias"): UNREDUCED}
"""What vLLM says of the shared experts, whose sums it leaves to what follows."""


def cases() -> Iterator[tuple[str, Case]]:
    """A case a model type and field, of the fewest layers that have all kinds."""
    for kind, config in PUBLISHED.items():
        for field in FIELDS:
            change = {field: True}
            part, refused = PARTS.get(kind), REFUSED.get((kind, field), "")
            if "text_config" in config and part is None:
                yield f"{kind} {field}", Case(config, layouts=ONE, text=change)
            else:
                yield f"{kind} {field}", Case(config, change, ONE, part, refused=refused)


LING = "inclusionAI--Ling-1T"
BIASED = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "use_bias": True}
CASES = {
    **dict(cases()),
    "a bias in two ranks' shared experts": Case(LING, BIASED, ((2, 1, False),), refused=UNREDUCED),
    "a bias without shared experts": Case(LING, BIASED | {"num_shared_experts": 0}, TWO),
    "a bias without a routed layer": Case(LING, BIASED | {"first_k_dense_replace": 3}, TWO),
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)


def test_no_family_reads_another_field() -> None:
    (folder,) = families.__path__
    read = {
        field
        for path in Path(folder).glob("*.py")
        for field in re.findall(r'(?:boolean|get)\("(\w*bias)"\)', path.read_text())
    }
    assert read == set(FIELDS)
