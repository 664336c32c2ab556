"""The edits that take drawing out of the football engine: applied to the published sources only."""

import subprocess
import sys
import tarfile
from pathlib import Path

import headless_engine
import pytest
from headless_engine import EDITS, PUBLISHED, VERSION, Edit, change, unpack


def test_an_edit_replaces_its_fragment_and_may_keep_it() -> None:
    assert change("a b c", Edit("file.cpp", "b", "x {} y")) == "a x b y c"
    assert change("a b c", Edit("file.cpp", " b", "")) == "a c"


@pytest.mark.parametrize("text", ["a c", "a b b c"])
def test_a_fragment_that_does_not_occur_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"file\.cpp is not the file that the edits are for: it has 'b' [02] times"):
        change(text, Edit("file.cpp", "b", "x"))


def test_another_archive_is_refused_and_nothing_is_unpacked(tmp_path: Path) -> None:
    sdist = tmp_path / f"gfootball-{PUBLISHED}.tar.gz"
    sdist.write_bytes(b"changed")
    with pytest.raises(ValueError, match=rf"is not the published source of gfootball {PUBLISHED}: its SHA-256 is"):
        unpack(sdist, tmp_path / "sources")
    assert not (tmp_path / "sources").exists()
    command = [sys.executable, headless_engine.__file__, str(sdist), str(tmp_path / "sources")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.startswith("headless_engine: gfootball-2.10.2.tar.gz is not the published source")


def test_every_file_is_edited_in_turn_and_the_version_tells_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"gfootball-{PUBLISHED}"
    engine = folder / headless_engine.ENGINE
    engine.mkdir(parents=True)
    (engine / "a.cpp").write_text("one two")
    (folder / "setup.py").write_text(f"setup(version='{PUBLISHED}')")
    sdist = tmp_path / f"gfootball-{PUBLISHED}.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(folder, folder.name)
    monkeypatch.setattr(headless_engine, "SHA256", headless_engine.hashlib.sha256(sdist.read_bytes()).hexdigest())
    monkeypatch.setattr(headless_engine, "EDITS", (Edit("a.cpp", "two", "{} three"), Edit("a.cpp", "three", "four")))
    unpack(sdist, tmp_path / "out")
    assert (tmp_path / "out" / folder.name / headless_engine.ENGINE / "a.cpp").read_text() == "one two four"
    assert (tmp_path / "out" / folder.name / "setup.py").read_text() == f"setup(version='{VERSION}')"


def test_an_edit_keeps_its_fragment_at_most_once() -> None:
    assert all(edit.replacement.count("{}") <= 1 for edit in EDITS)
    assert VERSION.startswith(f"{PUBLISHED}+headless.")
