"""What the planner says of a model beside what public servers logged when they started."""

from __future__ import annotations

import pytest

from truth.logs import GIB, LOGS, PAGE, Log, table, tokens_of

WEIGHED = [log for log in LOGS if log.weights is not None]
CACHED = [log for log in LOGS if log.cache is not None]


def name(log: Log) -> str:
    return log.source.rpartition("/")[2]


def test_there_are_eight_of_weights_and_each_says_something() -> None:
    assert len({log.source for log in WEIGHED}) >= 8
    assert all(log in WEIGHED or log in CACHED for log in LOGS)


@pytest.mark.parametrize("log", WEIGHED, ids=name)
def test_weights_are_within_one_and_a_half_percent(log: Log) -> None:
    assert log.weights is not None
    assert log.planned() / GIB == pytest.approx(log.weights, rel=0.015)


@pytest.mark.parametrize("log", CACHED, ids=name)
def test_the_cache_is_within_the_digits_of_the_log(log: Log) -> None:
    """Where it is a division, the bytes of a token are within a thousandth as well."""
    assert log.cache is not None
    gib, tokens = log.cache
    assert tokens_of(log, gib - log.digits) <= tokens <= tokens_of(log, gib + log.digits)
    assert tokens_of(log, gib) == pytest.approx(tokens, rel=0.001)


def test_a_transform_is_needed_where_one_is_named() -> None:
    for log in (log for log in WEIGHED if log.transform is not None):
        plain = log._replace(transform=None).planned() / GIB
        assert plain != pytest.approx(log.weights, rel=0.015)


def test_the_page_has_the_table_of_today() -> None:
    assert table() in PAGE.read_text()
