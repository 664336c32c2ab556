"""Answers from a folder: prompts are written, answers are read as they are, and what is missing is listed once."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, Message, Reply, Request, make_backend
from qllm_exp.llm.folder import Config as FolderConfig
from qllm_exp.llm.folder import stem

SYSTEM: Message = {"role": "system", "content": "You write functions.\n"}
USER: Message = {"role": "user", "content": "Write one. Ø\n"}
SHORT = Request((SYSTEM, USER), "round-1-coder-1")
LONG = Request(
    (SYSTEM, USER, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Better."}), "next"
)


def backend(folder: Path, model: str = "") -> Backend:
    return make_backend(FolderConfig(path=str(folder), model=model))


def answer(folder: Path, request: Request, content: bytes) -> None:
    (folder / f"{stem(request)}.answer.txt").write_bytes(content)


def test_missing_answers_are_listed_after_all_prompts_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "answers"
    with pytest.raises(UserError) as raised:
        backend(folder).ask([SHORT, LONG])
    message = str(raised.value)
    assert "2 of 2 answers are missing" in message and "run the same command again" in message
    for request in (SHORT, LONG):
        assert str(folder / f"{stem(request)}.answer.txt") in message
    assert sorted(os.listdir(folder)) == sorted(f"{stem(request)}.prompt.txt" for request in (SHORT, LONG))

    answer(folder, SHORT, b"an answer")
    with pytest.raises(UserError) as raised:
        backend(folder).ask([SHORT, LONG])
    assert "1 of 2 answers are missing" in str(raised.value) and stem(SHORT) not in str(raised.value)


def test_prompts_are_what_the_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        backend(tmp_path).ask([SHORT, LONG])
    short, long = (tmp_path / f"{stem(request)}.prompt.txt" for request in (SHORT, LONG))
    assert short.read_bytes().decode() == "You write functions.\n\nWrite one. Ø"
    assert long.read_bytes().decode() == (
        "[system]\nYou write functions.\n\n[user]\nWrite one. Ø\n\n[assistant]\nHere.\n\n[user]\nBetter."
    )
    assert stat.S_IMODE(short.stat().st_mode) == 0o644


def test_answers_are_read_unedited_and_in_order(tmp_path: Path) -> None:
    answer(tmp_path, SHORT, "  first Ø\r\n\n".encode())
    answer(tmp_path, LONG, b"second")
    replies = backend(tmp_path).ask([LONG, SHORT])
    assert replies == [
        Reply("second", "a large language model"),
        Reply("  first Ø\r\n\n", "a large language model"),
    ]


def test_a_file_belongs_to_one_name_and_one_conversation() -> None:
    twin = Request(SHORT.messages, "round-1-coder-2")
    changed = Request((SYSTEM, {"role": "user", "content": "Write two."}), SHORT.name)
    assert len({stem(one) for one in (SHORT, twin, changed, LONG)}) == 4
    written = (
        '[{"content": "You write functions.\\n", "role": "system"}, {"content": "Write one. Ø\\n", "role": "user"}]'
    )
    assert stem(SHORT) == f"round-1-coder-1-{hashlib.sha256(written.encode()).hexdigest()[:8]}"


def test_a_prompt_that_is_there_is_left_alone(tmp_path: Path) -> None:
    prompt = tmp_path / f"{stem(SHORT)}.prompt.txt"
    prompt.write_text("noted by hand")
    with pytest.raises(UserError):
        backend(tmp_path).ask([SHORT])
    assert prompt.read_text() == "noted by hand"


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8")])
def test_an_answer_that_is_none_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    answer(tmp_path, LONG, b"an answer")
    answer(tmp_path, SHORT, content)
    with pytest.raises(UserError, match=f"{stem(SHORT)}.answer.txt {words}"):
        backend(tmp_path).ask([LONG, SHORT])


def test_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llm\.path="):
        make_backend(FolderConfig())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"llm\.path=.*cannot be written"):
        backend(tmp_path / "file" / "deeper").ask([SHORT])


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot be written \(disk full\)"):
        backend(tmp_path).ask([SHORT])
    assert os.listdir(tmp_path) == []


def test_the_model_is_the_one_that_is_named_and_nothing_costs(tmp_path: Path) -> None:
    answer(tmp_path, SHORT, b"an answer")
    named = backend(tmp_path, "some-model")
    assert backend(tmp_path).ask([SHORT]) == [Reply("an answer", "a large language model")]
    assert named.ask([SHORT]) == [Reply("an answer", "some-model")] and named.worst_case_usd([SHORT]) == 0
