"""Answers from a folder: prompts are written, answers are read unedited, and missing answers are listed together."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, Message, Reply, Request, make_backend
from qllm_exp.llm import folder as folder_module
from qllm_exp.llm.folder import Config as FolderConfig
from qllm_exp.llm.folder import file_stem

SYSTEM: Message = {"role": "system", "content": "You write functions.\n"}
USER: Message = {"role": "user", "content": "Write one. Ø\n"}
SHORT = Request((SYSTEM, USER), "round-1-coder-1")
LONG = Request(
    (SYSTEM, USER, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Better."}), "next"
)


def backend(folder: Path, model: str = "") -> Backend:
    return make_backend(FolderConfig(path=str(folder), model=model))


def answer(folder: Path, request: Request, content: bytes) -> None:
    (folder / f"{file_stem(request)}.answer.txt").write_bytes(content)


def test_missing_answers_are_listed_after_all_prompts_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "answers"
    with pytest.raises(UserError) as raised:
        backend(folder).ask([SHORT, LONG])
    message = str(raised.value)
    assert "2 of 2 answers are missing" in message and "run the same command again" in message
    for request in (SHORT, LONG):
        assert str(folder / f"{file_stem(request)}.answer.txt") in message
    assert sorted(os.listdir(folder)) == sorted(f"{file_stem(request)}.prompt.txt" for request in (SHORT, LONG))

    answer(folder, SHORT, b"an answer")
    with pytest.raises(UserError) as raised:
        backend(folder).ask([SHORT, LONG])
    assert "1 of 2 answers are missing" in str(raised.value) and file_stem(SHORT) not in str(raised.value)


def test_prompt_files_contain_the_conversation(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        backend(tmp_path).ask([SHORT, LONG])
    short, long = (tmp_path / f"{file_stem(request)}.prompt.txt" for request in (SHORT, LONG))
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
    assert len({file_stem(request) for request in (SHORT, twin, changed, LONG)}) == 4
    messages_json = (
        '[{"content": "You write functions.\\n", "role": "system"}, {"content": "Write one. Ø\\n", "role": "user"}]'
    )
    assert file_stem(SHORT) == f"round-1-coder-1-{hashlib.sha256(messages_json.encode()).hexdigest()[:8]}"


def test_an_existing_prompt_is_not_overwritten(tmp_path: Path) -> None:
    prompt = tmp_path / f"{file_stem(SHORT)}.prompt.txt"
    prompt.write_text("noted by hand")
    with pytest.raises(UserError):
        backend(tmp_path).ask([SHORT])
    assert prompt.read_text() == "noted by hand"


@pytest.mark.parametrize(("content", "fault"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8")])
def test_an_invalid_answer_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    answer(tmp_path, LONG, b"an answer")
    answer(tmp_path, SHORT, content)
    with pytest.raises(UserError, match=f"{file_stem(SHORT)}.answer.txt {fault}"):
        backend(tmp_path).ask([LONG, SHORT])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_an_answer_that_is_no_file_or_too_large_is_named_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{file_stem(SHORT)}.answer.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr(folder_module, "_MAX_BYTES", 10)
        path.write_bytes(b"12345678901")
    with pytest.raises(UserError, match=f"{file_stem(SHORT)}.answer.txt cannot be read"):
        backend(tmp_path).ask([SHORT])


def test_a_folder_is_required(tmp_path: Path) -> None:
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


def test_the_model_is_the_configured_one_and_costs_nothing(tmp_path: Path) -> None:
    answer(tmp_path, SHORT, b"an answer")
    named = backend(tmp_path, "some-model")
    assert backend(tmp_path).ask([SHORT]) == [Reply("an answer", "a large language model")]
    assert named.ask([SHORT]) == [Reply("an answer", "some-model")] and named.worst_case_usd([SHORT]) == 0
