"""C++ files as libraries: built once, cached for every later process, replaced by torch where they cannot be built."""

import logging
import threading
from pathlib import Path

import pytest

from qllm_exp.utils import compiled
from qllm_exp.utils.compiled import CompiledSource


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty cache of a user who has not built anything yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qllm_exp"


def source(tmp_path: Path, answer: str = "42") -> CompiledSource:
    """What a new process makes of a C++ file, with one function `answer`."""
    path = tmp_path / "answer.cpp"
    path.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')
    return CompiledSource(path, ["-O0"], "answer")


def compiler_that_writes(folder: Path, marker: str) -> str:
    """A compiler whose libraries contain a text, so that its version shows in what it builds."""
    script = folder / f"c++-{marker}"
    script.write_text(f'#!/bin/sh\nexec c++ "$@" -Wl,-soname,{marker}\n')
    script.chmod(0o755)
    return str(script)


def test_its_functions_can_be_called(cache: Path, tmp_path: Path) -> None:
    library = source(tmp_path)
    assert library.available() and library.status().startswith(f"native ({cache}")
    assert library.function("answer")() == 42


def test_another_text_or_other_flags_make_another_file(cache: Path, tmp_path: Path) -> None:
    assert source(tmp_path).function("answer")() == 42
    assert source(tmp_path, "43").function("answer")() == 43
    other_flags = CompiledSource(tmp_path / "answer.cpp", ["-O1"], "answer")
    assert other_flags.available()
    assert len(list(cache.iterdir())) == 3


def test_it_can_be_disabled(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLLM_EXP_NATIVE", "0")
    library = source(tmp_path)
    assert (library.status(), library.version()) == ("torch (QLLM_EXP_NATIVE=0)", "torch")
    assert not cache.exists()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_fails_is_reported_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    library = source(tmp_path)
    with caplog.at_level(logging.INFO, logger=compiled.__name__):
        assert library.status().startswith(f"torch ({compiler}: ")
        assert not library.available()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert compiler in caplog.text and "No compiled answer" in caplog.text


def test_no_compiler_at_all_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert source(tmp_path).status().startswith("torch (no C++ compiler")


def test_a_command_that_is_not_closed_and_a_message_in_another_encoding_are_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ '-O3")
    assert source(tmp_path).status() == 'torch (CXX="g++ \'-O3" is not a command: No closing quotation)'
    script = tmp_path / "cxx"
    script.write_bytes(b"#!/bin/sh\necho 'error: kein g\xfcltiges Programm' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert source(tmp_path).status().endswith("error: kein g\ufffdltiges Programm)")


def test_a_source_with_an_error_is_reported_with_its_line(cache: Path, tmp_path: Path) -> None:
    status = source(tmp_path, "unknown_name").status()
    assert status.startswith("torch (") and "answer.cpp:1" in status and "unknown_name" in status


def test_many_that_build_at_once_leave_one_whole_file(cache: Path, tmp_path: Path) -> None:
    libraries = [source(tmp_path) for _ in range(2)]
    builders = [threading.Thread(target=library.available) for library in libraries]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    (path,) = cache.iterdir()
    assert {library.status() for library in libraries} == {f"native ({path})"}


def test_it_works_without_a_writable_cache(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file where the folder should be")
    library = source(tmp_path)
    assert library.status().startswith("native (for this process only")
    assert library.function("answer")() == 42


@pytest.mark.parametrize("later", ["", "no-such-compiler", "newer"])
def test_a_library_in_the_cache_is_used_whatever_compiler_there_is_later(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, later: str
) -> None:
    monkeypatch.setenv("CXX", compiler_that_writes(tmp_path, "first"))
    library = source(tmp_path)
    first = library.status(), library.version()
    assert first[0].startswith(f"native ({cache}") and first[1].startswith("native ")
    if later:
        monkeypatch.setenv("CXX", compiler_that_writes(tmp_path, later) if later == "newer" else later)
    else:
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", "")
    library = source(tmp_path)
    assert (library.status(), library.version()) == first


def test_its_version_is_that_of_its_content(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = []
    for folder, marker in (("a", "first"), ("b", "first"), ("c", "newer")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        monkeypatch.setenv("CXX", compiler_that_writes(tmp_path, marker))
        versions.append(source(tmp_path).version())
    cache.write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    versions.append(source(tmp_path).version())
    assert versions[0] == versions[1] != versions[2] == versions[3]
