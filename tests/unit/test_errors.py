"""Hints for misspelt names, and errors that code of the user's own raises."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qllm_exp import errors
from qllm_exp.config import registry
from qllm_exp.errors import UserError, nearest, user_traceback
from qllm_exp.utils.text import count

TASKS = ["lbf/8x8-2p-2f-coop-2s", "lbf/10x10-3p-3f-2s", "mpe/simple_spread", "matrix/climbing"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lbf/8x8", "lbf/8x8-2p-2f-coop-2s"),  # a beginning, however short
        ("8x8-2p-2f-coop-2s", "lbf/8x8-2p-2f-coop-2s"),  # without the environment
        ("spread", "mpe/simple_spread"),
        ("CLIMB", "matrix/climbing"),
        ("mpe/simple_spraed", "mpe/simple_spread"),
    ],
)
def test_the_nearest_name_is_suggested(word: str, expected: str) -> None:
    assert nearest(word, TASKS) == f" Did you mean {expected!r}?"


@pytest.mark.parametrize("word", ["", "x", "2", "chess"])
def test_nothing_is_suggested_where_nothing_is_near(word: str) -> None:
    assert nearest(word, TASKS) == ""


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as error:
        call()
    return error.value


def test_only_the_lines_of_the_users_own_code_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of the user's that the package calls, and that calls the package and a library."""
    (tmp_path / "own_noun.py").write_text(
        "import json\n\n\nclass Noun:\n    def __format__(self, form):\n        return self.read()\n\n"
        "    def read(self):\n        return json.loads('{')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_noun  # type: ignore[import-not-found]

    error = raised(lambda: count(2, own_noun.Noun()))
    text = user_traceback(error)
    assert text.startswith("JSONDecodeError: Expecting property name")
    places = [line.split('"')[1] for line in text.splitlines() if line.startswith("  File ")]
    assert [Path(place).name for place in places[:2]] == ["own_noun.py", "own_noun.py"]
    assert str(Path(errors.__file__).parent) not in text and str(Path(__file__)) not in text
    assert errors.error_line(error).endswith("own_noun.py, line 6)")


def test_an_error_of_the_package_itself_has_no_lines_of_the_users() -> None:
    assert user_traceback(raised(lambda: errors.choose("a", "b", None))) == ""  # type: ignore[arg-type]


def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_typo.py").write_text("Config = None\n\nvalue = undefined\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    error = raised(lambda: registry.find("env", "own_typo"))
    assert isinstance(error, UserError)
    assert f"NameError: name 'undefined' is not defined ({tmp_path / 'own_typo.py'}, line 3)" in str(error)
