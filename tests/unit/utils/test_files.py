"""Files that others wrote: what is not a small regular file of plain JSON is refused, quickly and with its reason."""

import json
import os
import socket
from pathlib import Path

import pytest

from qllm_exp.utils.files import MAX_BYTES, parse_strict_json, read_regular_file, strict_json, write_atomically


def test_a_regular_file_is_read_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to("a")
    assert read_regular_file(tmp_path / "a", 4) == read_regular_file(tmp_path / "link") == b"text"


def test_what_is_not_a_small_regular_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**31)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listener.bind("socket")
    for name, reason in {
        "pipe": "it is not a regular file",
        "folder": "it is not a regular file",
        "link": "No such file",
        "loop": "symbolic links",
        "huge": f"it is larger than {MAX_BYTES:,} bytes",
        "socket": "No such device",
    }.items():
        with pytest.raises(OSError, match=reason):
            read_regular_file(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file(Path("/dev/zero"))


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_a_file_gets_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    previous = os.umask(mask)
    try:
        for text in ("old", "new"):
            write_atomically(tmp_path / "file", text)
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "file").read_text() == "new" and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_numbers_that_json_does_not_have_are_written_as_null() -> None:
    data = {"a": float("nan"), "b": [1.5, float("inf"), (-float("inf"), "NaN")], "c": {"d": 0.1}}
    assert parse_strict_json(strict_json(data).encode()) == {
        "a": None,
        "b": [1.5, None, [None, "NaN"]],
        "c": {"d": 0.1},
    }
    assert strict_json({"a": 1, "b": [0.1, None]}) == json.dumps({"a": 1, "b": [0.1, None]})
    assert strict_json({"a": float("nan")}, indent=1) == '{\n "a": null\n}'


def test_plain_json_is_read() -> None:
    data = {"a": [1, -2.5, True, None, "Ø 🙂"], "b": {"c": 2**63 - 1, "d": 1e300}}
    assert parse_strict_json(json.dumps(data, ensure_ascii=False).encode()) == data
    assert parse_strict_json(json.dumps(data).encode()) == data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e400]", "1e400 is too large"),
        (b"[9223372036854775808]", "does not fit 64 bits"),
        (b"[" + b"9" * 10**6 + b"]", "does not fit 64 bits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        (b'["\\ud800"]', r"half of a surrogate pair, '\\ud800'"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b"[" * 66 + b"]" * 66, "nested deeper than 64"),
        (b"[" * 10**6, "nested deeper than 64"),
        (b'{"a":' * 10**5, "nested deeper than 64"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_json_that_programs_read_differently_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        parse_strict_json(content)
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_many_keys_are_read_in_linear_time() -> None:
    content = json.dumps({str(k): k for k in range(50_000)})[:-1] + ', "49999": 0}'
    with pytest.raises(ValueError, match="'49999' occurs twice"):
        parse_strict_json(content.encode())
