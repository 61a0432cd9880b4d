"""The page of templates tried says what the registry tests expect."""

from tests.registry import docs_table
from tests.registry.expected import table


def test_page_is_the_table() -> None:
    assert docs_table.PAGE.read_text(encoding="utf-8") == docs_table.page()


def test_every_template_is_listed_once() -> None:
    names = [entry.name for entry in table()]
    assert len(set(names)) == len(names) > 0
