"""The pages of algorithms and mixers agree with the code and the measured results."""

import generate_methods
import pytest

WRITTEN = generate_methods.pages()
METHODS = [(group, name) for group in generate_methods.GROUPS for name in generate_methods.CHOICES[group]]


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_page_is_up_to_date(name):
    assert (generate_methods.PAGES / name).read_text() == WRITTEN[name], "run: python docs/generate_methods.py"


def test_every_page_has_a_method():
    assert {path.name for path in generate_methods.PAGES.glob("*.md")} == set(WRITTEN)


@pytest.mark.parametrize(("group", "name"), METHODS)
def test_page_has_source_equations_and_deviations(group, name):
    text = WRITTEN[f"{name}.md"]
    assert "arXiv" in text or name == "none"
    assert "\n    " in text.partition("## Settings")[0], "equations, indented"
    assert "\n1. " in text or "iql" in text, "numbered deviations, or a link to the page that has them"


def test_lists_of_docstrings_become_markdown_lists():
    assert generate_methods._markdown("Deviations:\n1. One,\n   in two lines.\n2. Two.") == (
        "Deviations:\n\n1. One,\n   in two lines.\n2. Two."
    )


def test_methods_are_assigned_to_their_pages():
    assert generate_methods._parts("riit+tfcaf") == ("riit", "tfcaf")
    assert generate_methods._parts("wqmix weighting=cw") == ("q_learning", "wqmix")
    assert generate_methods._parts("iql") == ("iql", "none")


def test_rows_of_environments_that_were_not_measured_stay():
    header = "env,task,method,value"
    before = [{"env": env, "task": "a", "method": "vdn", "value": "1"} for env in ("lbf", "matrix", "mpe")]
    text = generate_methods.merged(before, f"{header}\nmatrix,b,qmix,2\nmatrix,b,vdn,3\n")
    assert text == f"{header}\nlbf,a,vdn,1\nmatrix,b,qmix,2\nmatrix,b,vdn,3\nmpe,a,vdn,1\n"
