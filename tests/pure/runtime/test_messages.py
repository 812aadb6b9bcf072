"""Whatever bytes another rank sends: they are plain data, or the rank is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.ranks import messages

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=1000, deadline=None)
@given(st.binary())
def test_bytes_that_say_nothing_are_named(raw):
    try:
        expected = json.loads(raw)
    except ValueError:
        with pytest.raises(MismatchError, match="rank 5 sent is no JSON"):
            messages.decoded(5, raw)
    else:
        assert repr(messages.decoded(5, raw)) == repr(expected)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_plain_data_comes_back(value):
    assert messages.decoded(0, messages._encoded(value)) == value


@settings(max_examples=300, deadline=None)
@given(PLAIN, st.data())
def test_a_message_that_was_cut_is_never_another_one(value, data):
    whole = messages._encoded({"value": value})
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(MismatchError, match="rank 1 sent is no JSON"):
        messages.decoded(1, cut)
