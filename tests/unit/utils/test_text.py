"""Text from outside is shown so that it cannot act on what shows it; every signal has a name."""

import signal

import pytest

from qllm_exp.utils.text import excerpt, inert, inert_lines, signal_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ~ text", "plain ~ text"),
        ("\x1b]0;title\x07\x1b[31mred", r"\x1b]0;title\x07\x1b[31mred"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u200bb\ufeffc\u2028d\u00add", r"a\u200bb\ufeffc\u2028d\xadd"),
        ("\x9b31m\x00\x7f", r"\x9b31m\x00\x7f"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("é Ø 中 ≤ 🙂 e\u0301", "é Ø 中 ≤ 🙂 e\u0301"),
    ],
)
def test_what_is_not_drawn_as_itself_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert inert(text) == shown and inert(shown) == shown
    assert inert_lines(text) == shown.replace("\\n", "\n").replace("\\t", "\t")


def test_lines_of_any_system_are_kept() -> None:
    assert inert_lines("a\r\nb\n\tc") == "a\nb\n\tc"
    assert inert_lines("shown\rhidden") == "shown\\rhidden"


def test_a_long_text_is_cut() -> None:
    assert excerpt("\x1b" + "x" * 10**6, 5) == r"\x1bxxxx..."
    assert excerpt(["\n"]) == r"['\n']"


def test_every_signal_has_a_name() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(signal.SIGRTMIN + 1) == f"signal {signal.SIGRTMIN + 1}"
