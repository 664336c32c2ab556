"""The pages of algorithms and mixers say what the code and the measured table say."""

import pages
import pytest

from qllm_exp.config import schema

MADE = pages.pages()


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_page_is_as_tests_pages_py_writes_it(name):
    assert (pages.PAGES / name).read_text() == MADE[name], "run: python tests/pages.py"


def test_there_is_no_page_of_what_there_is_not():
    assert {path.name for path in pages.PAGES.glob("*.md")} == set(MADE)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in pages.GROUPS for name in schema.CHOICES[group]])
def test_a_page_says_source_equations_and_deviations(group, name):
    text = MADE[f"{name}.md"]
    assert "arXiv" in text or name == "none"
    assert "\n    " in text.partition("## Settings")[0], "equations, indented"
    assert "\n1. " in text or "iql" in text, "numbered deviations, or where they are"
