"""The command tfcaf with files that anybody wrote: a fault is one line, nothing is imported or leaked, and output is inert."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qllm_exp import tfcaf
from qllm_exp.credit import stored_function
from tests.unit.credit.test_stored_function import ROW, make_function, write_changed_file

ACTIVE = "\x1b]0;title\x07\x1b[31mred \rmore \u202egnp"
SHOWN = r"\x1b]0;title\x07\x1b[31mred \rmore \u202egnp"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run the command, and return what it prints, which is never active."""
    assert tfcaf.main(arguments) == code
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert all(line.isprintable() for line in text.split("\n")), text
    assert "Traceback" not in text
    return text


def test_bad_files_are_lines_of_the_list_and_hide_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function = make_function()
    function.save(tmp_path / f"{function.key}.json")
    function.save(tmp_path / f"{'0' * 64}.json")
    (tmp_path / "dangling.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(2**31)
    (tmp_path / "\x1b[31m.json").write_text("{")
    write_changed_file(tmp_path / "active.json", rehash=True, provenance={"model": ACTIVE})
    text = printed(capsys, "list", f"tfcaf.cache={tmp_path}")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines[function.key[:12]].split()[1:3] == ["mpe/simple_spread", "some-model"]
    assert "filed under the key 000000000000" in lines["000000000000"]
    assert "does not exist" in lines["dangling"] and "not a regular file" in lines["folder"] + lines["pipe"]
    assert "larger than 16,777,216 bytes" in lines["huge"] and "is not JSON" in lines[r"\x1b[31m"]
    assert SHOWN in lines["active"] and "bundled" in lines


def test_everything_that_show_prints_is_inert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        **ROW,
        "call": ACTIVE,
        "answer": ACTIVE,
        "outcome": ACTIVE,
        "messages": [{"role": "user", "content": ACTIVE}],
    }
    path = write_changed_file(
        tmp_path / "x.json",
        rehash=True,
        source=f"# {ACTIVE}\n",
        verdict=ACTIVE,
        provenance={ACTIVE: ACTIVE},
        prompts={ACTIVE: ACTIVE},
        transcript=[row],
    )
    for option, times in (((), 4), (("--prompt",), 3), (("--transcript",), 4)):
        assert printed(capsys, "show", str(path), *option).count(SHOWN) == times


def test_a_file_that_is_not_one_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "dangling.json").symlink_to("nowhere")
    for name, reason in {"pipe.json": "not a regular file", "dangling.json": "does not exist"}.items():
        for command in ("show", "explain"):
            assert reason in printed(capsys, command, str(tmp_path / name), code=2)


def test_explain_opens_no_module_and_writes_nowhere_that_only_the_file_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-print")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evilmod").mkdir()
    (tmp_path / "evilmod" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "evilmod" / "env.py").write_text("Config = make = parallel_env = None\n")
    for values, reason in (
        ({"env": "evilmod.env", "task": "x"}, "which is not an environment of this package"),
        (
            {"env": "pettingzoo", "task": "evilmod.env"},
            "If you trust that module, add env=pettingzoo env.task=evilmod.env",
        ),
        ({"env": "mpe", "task": "${oc.env:SECRET_TOKEN}"}, "is not a name"),
        ({"env": "mpe", "task": "x' env.name=evilmod.env '"}, "is not a name"),
        ({"key": "/../../marks"}, "key must be 64 hexadecimal digits"),
    ):
        path = write_changed_file(tmp_path / "x.json", rehash=True, **values)
        text = printed(capsys, "explain", str(path), code=2)
        assert reason in text and "do-not-print" not in text
    assert "evilmod" not in sys.modules and sorted(os.listdir(tmp_path)) == ["evilmod", "x.json"]


def test_a_bundled_function_is_not_used_with_other_rules_in_silence() -> None:
    from qllm_exp.config.compose import compose_run
    from qllm_exp.credit.stored_function import bundled_path
    from qllm_exp.errors import UserError
    from qllm_exp.generation import provide

    command, bundled = ["mixer=tfcaf", "env=mpe"], bundled_path("mpe", "simple_spread")
    assert provide.locate(compose_run(command)).path == bundled
    message = f"for mpe/simple_spread was written for env.rules=vmas.*mixer.file={bundled}"
    with pytest.raises(UserError, match=message):
        provide.locate(compose_run([*command, "env.rules=pettingzoo"]))
    named = compose_run([*command, "env.rules=pettingzoo", f"mixer.file={bundled}"])
    assert provide.locate(named).path == bundled


def test_a_run_does_not_use_a_function_of_another_task_in_silence(tmp_path: Path) -> None:
    from qllm_exp.config.compose import compose_run
    from qllm_exp.credit.stored_function import bundled_path
    from qllm_exp.errors import UserError
    from qllm_exp.generation import provide
    from qllm_exp.sweep.prepare import check

    command = ["mixer=tfcaf", "env=matrix", "env.task=penalty-25", f"tfcaf.cache={tmp_path}", "device=cpu"]
    run = compose_run([*command, "llm=folder", f"llm.path={tmp_path / 'answers'}"])
    other = stored_function.load(bundled_path("matrix", "penalty-50"))
    request = provide.request_for(run)
    stored = replace(other, request=request, key=provide.key_for(run), prompt_hash=request["prompts"])
    stored.save(provide.locate(run).path)
    with pytest.raises(UserError, match="is for matrix/penalty-50, not for matrix/penalty-25"):
        check(run)
    named = [*command, f"mixer.file={provide.locate(run).path}"]
    with pytest.raises(UserError, match=r"add mixer\.written_for=matrix/penalty-50"):
        check(compose_run(named))
    explicit = compose_run([*named, "mixer.written_for=matrix/penalty-50"])
    assert check(explicit).mixer == explicit.mixer
    data = json.loads(provide.locate(run).path.read_text())
    assert data["task"] == "penalty-50"
