"""Weights that pass through a rank: when each is loaded and processed, and with which values."""

from __future__ import annotations

from hosted.child import run_child

WHOLE = """
from hosted.passing import Passing
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

passing = Passing("a", "b")
for part, value in (("1", 2.0), ("0", 1.0), ("scale", 3.0)):
    passing.give("a", part, value)
on_meta = all(p.is_meta for p in passing.modules["a"].parameters())
passing.give("a", "scale", 4.0)
before = list(passing.happened)
passing.give("b", "0", 5.0)
after = list(passing.happened)
passing.raw["a"].finish()
passing.give("b", "1", 6.0)
passing.give("b", "scale", 7.0)
passing.raw["b"].finish()
original = passing.modules["a"].scale.weight_loader is default_weight_loader
result = [on_meta, before, after, passing.happened, passing.seen, original]
"""

LACKING = """
from hosted.passing import Passing

passing = Passing("a", "b")
for name in ("a", "b"):
    for part in ("0", "1"):
        passing.give(name, part, 1.0)
before = list(passing.happened)
passing.raw["a"].finish()
result = [before, passing.happened, passing.seen]
"""

RANDOM = """
import torch
from hosted.passing import Passing
from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

passing = Passing("a", random=True)
passing.raw["a"].finish()
weight, scale = torch.empty(4, 2), torch.empty(1)
initialize_single_dummy_weight(weight)
initialize_single_dummy_weight(scale)
result = [passing.seen["a"], [*weight[:, 0].tolist(), scale.item()]]
"""

RANDOM_BY_NAME = """
from hosted.passing import Passing
from vllm_layershard.hosts.replicas import raw_weight

def as_in_033(param, low=None, high=None, seed=1234, name=""):
    param.fill_({"weight": 5.0, "scale": 6.0}[name])

raw_weight.initialize_single_dummy_weight = as_in_033
passing = Passing("a", random=True)
passing.raw["a"].finish()
result = passing.seen["a"]
"""

REFUSED = """
from hosted.passing import Passing

passing = Passing("a", "b")
passing.refused = True
for part in ("0", "1", "scale"):
    passing.give("a", part, 1.0)
try:
    passing.give("b", "0", 1.0)
except ValueError as error:
    passing.happened.append(f"raised: {error}")
result = passing.happened
"""


def test_a_whole_weight_is_processed_once_when_another_one_comes():
    """Some checkpoints bring a tensor twice: the last one counts."""
    on_meta, before, after, end, seen, original = run_child(WHOLE)
    assert on_meta
    assert before == []
    assert after == ["while loading", "a"]
    assert end == ["while loading", "a", "b"]
    assert seen == {"a": [1.0, 1.0, 2.0, 2.0, 4.0], "b": [5.0, 5.0, 6.0, 6.0, 7.0]}
    assert original, "the parameter has its own loader again"


def test_a_weight_that_lacks_a_part_is_processed_in_its_turn():
    assert run_child(LACKING) == [[], ["a"], {"a": [1.0, 1.0, 1.0, 1.0, 0.0]}]


def test_random_weights_are_those_of_a_rank_that_stores_them():
    seen, expected = run_child(RANDOM)
    assert seen == expected
    assert all(seen), "none is zero"


def test_what_is_raised_while_a_model_loads_is_told():
    assert run_child(REFUSED) == ["while loading", "told: no room", "raised: no room"]


def test_random_weights_are_made_by_their_names_where_vllm_asks_for_them():
    """Source: vLLM 0.33, model_loader/dummy_loader.py, which gives each parameter's name."""
    assert run_child(RANDOM_BY_NAME) == [5.0, 5.0, 5.0, 5.0, 6.0]
