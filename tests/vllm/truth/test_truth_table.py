"""The page says what was compared, and nothing else."""

from truth.table import PAGE, table


def test_the_page_has_the_table_of_today():
    assert table() in PAGE.read_text()
