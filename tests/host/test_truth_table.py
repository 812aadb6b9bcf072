"""The page says what was compared, and nothing else."""

from host.truth_table import PAGE, table


def test_the_page_has_the_table_of_today():
    assert table() in PAGE.read_text()
