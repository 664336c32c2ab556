"""Run directories that anybody wrote: nothing is leaked, imported, waited for or written elsewhere by reading them."""

import json
import os
import pickle
import sys
import time
from pathlib import Path

import pytest

from qllm_exp.cluster import logs, status
from qllm_exp.config import registry, schema
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.errors import UserError
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.results.records.reader import Reader
from qllm_exp.runs.run_directory import RunDirectory, tail
from qllm_exp.runs.sweep_directory import Sweep

ACTIVE = "\x1b[2J\u202ered\x07"
SHOWN = r"\x1b[2J\u202ered\x07"


def make_run(folder: Path) -> RunDirectory:
    directory = RunDirectory(folder)
    directory.create(schema.RunConfig(mixer=TfcafConfig()), bundled_path("lbf", "8x8-2p-2f-coop-2s").read_text())
    return directory


def replace_in_config(directory: RunDirectory, old: str, new: str) -> None:
    text = directory.config.read_text()
    assert old in text
    directory.config.write_text(text.replace(old, new, 1))


TASK = "task: 8x8-2p-2f-coop-2s"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("task: ${oc.env:SECRET_TOKEN}", r"it contains \$\{\.\.\.\}"),
        ('task: "\\x24{oc.env:SECRET_TOKEN}"', r"it contains \$\{\.\.\.\}"),
        ("${oc.env:SECRET_TOKEN}: x\n  task: y", r"it contains \$\{\.\.\.\}"),
        ("task: &a [x]\n  options: [*a, *a]", r"it contains a reference \(\*name\)"),
        ("task: &a [*a]", r"it contains a reference"),
        ("task: !!python/object/apply:os.getcwd []", "is not a valid run configuration"),
        ("task: !!map [b, c]", r"it contains a type \(!!name\)"),
        ("task: !!set {b, c}", r"it contains a type \(!!name\)"),
        ("task: x\n  task: y", "found duplicate key task"),
        ("task: \x1b", "is not a valid run configuration"),
        ("task: " + "[" * 5_000 + "]" * 5_000, "is not a valid run configuration"),
    ],
)
def test_a_configuration_stands_for_itself(
    tmp_path: Path, task: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-print")
    directory = make_run(tmp_path / "run")
    assert directory.read_config().env.task == "8x8-2p-2f-coop-2s"
    replace_in_config(directory, TASK, task)
    with pytest.raises(UserError, match=reason) as error:
        directory.read_config()
    assert "do-not-print" not in str(error.value) and str(error.value).isprintable()


def test_a_configuration_of_another_kind_is_refused(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    for text in ("- a\n", "3\n", "x: " + "y" * 2**21):
        directory.config.write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml (is not a valid run|cannot be read: it is larger)"):
            directory.read_config()
    directory.config.unlink()
    os.mkfifo(directory.config)
    with pytest.raises(UserError, match="it is not a regular file"):
        directory.read_config()


def test_a_configuration_imports_no_module_that_is_not_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "effects").mkdir()
    (tmp_path / "effects" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "effects" / "part.py").write_text("x = 1\n")
    for name in ("effects.part", "effects", "antigravity", "effects.none", "..", "a b", ""):
        with pytest.raises(UserError, match=r"is unknown|needs a dataclass named Config"):
            registry.find("env", name)
    assert registry.find_source("effects.part") == tmp_path / "effects" / "part.py"
    assert not {"effects", "antigravity"} & set(sys.modules)
    directory = make_run(tmp_path / "run")
    replace_in_config(directory, "name: lbf", "name: effects.part")
    with pytest.raises(UserError, match="needs a dataclass named Config"):
        directory.read_config()


def test_a_task_imports_no_module_that_is_not_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qllm_exp.envs import env_module, imports_task

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "outer" / "inner.py").write_text("")
    module = env_module("pettingzoo")
    with pytest.raises(UserError, match=r"has no parallel_env\(\)"):
        module.check(module.Config(task="outer.inner"))
    assert "outer" not in sys.modules
    assert imports_task("pettingzoo", "outer.inner") and not imports_task("pettingzoo", module.tasks()[0])
    assert not imports_task("lbf", "9x9-2p-2f") and not imports_task("harmful", "x")


def test_a_configuration_with_copies_of_copies_is_not_expanded(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    lines = [f"  l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 30)]
    for block in ("  l0: &l0 [x]\n" + "\n".join(lines), "  l0: &l0 [*l0]"):
        directory.config.write_text(f"seed: 0\nenv:\n  name: lbf\n  task: x\n{block}\nalgorithm: {{name: iql}}\n")
        start = time.process_time()
        with pytest.raises(UserError, match="is not a valid run configuration"):
            Reader().method(directory.path)
        assert time.process_time() - start < 5


def test_texts_of_a_configuration_are_inert_in_records(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    replace_in_config(directory, TASK, 'task: "\\e[2J\\u202ered\\a"')
    method, _ = Reader().method(directory.path)
    assert method.task == f"lbf/{SHOWN}"


def test_status_and_logs_print_inert_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_run(tmp_path / f"run{ACTIVE}")
    directory.set_status_from_outside("failed", error=f"{ACTIVE} failed", env_step="many")
    other = make_run(tmp_path / "other")
    other.set_status_from_outside("running", heartbeat="now", env_step=float("nan"), total_steps=[], **{"return": "x"})
    assert set(other.status()) == {"state"}
    directory.log.write_text(f"first\nlast {ACTIVE}\n")
    assert status.main([str(tmp_path)]) == 1
    assert logs.main([str(directory.path)]) == 0
    assert status.main([str(tmp_path / ACTIVE)]) == 2
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert SHOWN in text and all(line.isprintable() for line in text.split("\n"))
    assert f"last {SHOWN}" in captured.out and f"{SHOWN} failed" in captured.out


def test_a_pipe_in_a_folder_does_not_block(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    for name in ("status.json", "result.json", "log.txt", "console.txt", "metrics.jsonl"):
        os.mkfifo(directory.path / name)
    assert directory.status() == {} and tail(directory.log, 3) == []
    with pytest.raises(UserError, match="not a regular file"):
        Reader().finished(directory.path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", ".", "", 3])
def test_a_sweep_has_no_run_outside_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": ["run", name]}))
    with pytest.raises(UserError, match=r"sweep\.json cannot be read: runs must be names of run directories"):
        Sweep(tmp_path)


@pytest.mark.parametrize("entry", [{"command": 0}, {"decisions": {}}, {"max_failures": None}])
def test_a_record_of_a_sweep_with_another_type_is_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": ["run"]} | entry))
    with pytest.raises(UserError, match=rf"sweep\.json cannot be read: {next(iter(entry))} must be (str|list|int)"):
        Sweep(tmp_path)


class Harmful:
    """Pickled, it runs a command when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {os.environ['MARK']}",)


def test_a_policy_file_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qllm_exp.envs import make_env
    from qllm_exp.explain.policy import load_policy

    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    directory = make_run(tmp_path / "run")
    env = make_env(directory.read_config().env, 1, 0)
    for content in (pickle.dumps(Harmful(), 2), b"", b"text", b"PK\x03\x04broken", pickle.dumps([1], 2)):
        directory.policy.write_bytes(content)
        with pytest.raises(UserError, match=r"policy\.pt has no parameters of a policy"):
            load_policy(directory.path, env)
    directory.policy.unlink()
    os.mkfifo(directory.policy)
    with pytest.raises(UserError, match=r"has no policy\.pt"):
        load_policy(directory.path, env)
    assert not (tmp_path / "mark").exists()
