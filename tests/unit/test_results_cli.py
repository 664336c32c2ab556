"""`python -m qllm_exp.results`: what it prints and writes, and how it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make, of, unfinished

from qllm_exp.config import schema
from qllm_exp.results.__main__ import main
from qllm_exp.results.summary import summarise


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        make(tmp_path / "runs", of("qmix", seed), 0.5 + 0.1 * seed)
        make(tmp_path / "runs", of("vdn", seed, train=schema.TrainConfig(hidden=32)), 0.3 + 0.1 * seed)
    return tmp_path / "runs"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(one) for one in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def test_the_module_runs(runs: Path) -> None:
    command = [sys.executable, "-m", "qllm_exp.results", "table", "runs"]
    done = subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "| lbf/8x8-2p-2f-coop-2s | 0.600 [" in done.stdout and "(n=3)" in done.stdout


@pytest.mark.parametrize("command", ["", "table", "ablation", "curves", "profiles", "improvement", "bars", "report"])
def test_help_says_what_there_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and ("FOLDER" in said if command else "improvement" in said)


def test_runs_is_the_default_folder(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["table"]) == 0 and "(n=3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "begin"), [("md", "Return"), ("tex", "% needs"), ("csv", "env,task"), ("html", "<!DO")]
)
def test_the_ending_of_the_file_says_the_format(
    runs: Path, ending: str, begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.parent / "deep" / f"t.{ending}"
    assert main(["table", str(runs), "--columns", "parameters,cost", "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n" and file.read_text().startswith(begin)
    assert "27310" in file.read_text()
    assert main(["table", str(runs), "--format", "csv", "-o", str(file)]) == 0
    assert len(list(csv.DictReader(file.open()))) == 2


def test_an_ablation_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for hidden in (32, 64):
        make(tmp_path, of("vdn", train=schema.TrainConfig(hidden=hidden)), 0.3)
    assert main(["ablation", str(tmp_path), "--axis", "train.hidden"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("| lbf")]
    assert [line[3] for line in table] == ["32", "64"] and table[1][-2] == "default"


def test_commands_are_narrowed_alike(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(runs, of("vdn", 9), "failed")
    assert main(["table", str(runs), "--only", "mixer=qmix", "--only", "seed=1-2"]) == 0
    said = capsys.readouterr().out
    assert "qmix" in said and "vdn" not in said and "(n=2)" in said
    for command in ("curves", "profiles", "bars"):
        file = runs.parent / f"{command}.svg"
        assert main([command, str(runs), "--only", "mixer=vdn", "-o", str(file)]) == 0
        text = file.read_text()
        assert "(n=3)" in text
        assert "qmix" not in text and "1 failed (s9)" in text
    capsys.readouterr()
    assert "One method only, vdn" in refused(capsys, "improvement", runs, "--only", "mixer=vdn")


def test_what_is_a_line_may_be_chosen(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs.parent / "c.svg"
    assert main(["curves", str(runs), "--by", "mixer,seed", "-o", str(file)]) == 0
    assert all(f"{mixer} seed={seed} (n=1)" in file.read_text() for mixer in ("qmix", "vdn") for seed in range(3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table", "nowhere"], "nowhere is no folder"),
        (["table", "RUNS", "--only", "mixer=qmx"], "has mixer=qmx. Did you mean 'qmix'? There are: qmix, vdn."),
        (["ablation", "RUNS", "--axis", "mixer", "--only", "hidden=32"], "Did you mean 'train.hidden'?"),
        (["bars", "RUNS", "--only", "qmix"], "--only qmix: give KEY=VALUE,..."),
        (["curves", "RUNS", "--by", "mixr"], "Did you mean 'mixer'?"),
        (["table", "RUNS", "-o", "table"], "table: its ending says no format. Give --format, or one of .md, .tex"),
        (["bars", "RUNS", "-o", "bars"], "bars: a figure is written as .png, .pdf, .svg. Give e.g. -o bars.pdf."),
        (
            ["table", "RUNS", "--metric", "finel"],
            "--metric='finel' is unknown. Did you mean 'final'? Allowed: final, absolute",
        ),
        (["table", "RUNS", "--stat", "mode"], "--stat='mode' is unknown."),
        (["table", "RUNS", "--format", "latx"], "Did you mean 'latex'?"),
        (["table", "RUNS", "--rows", "tsk"], "'tsk' is no key of these runs. Did you mean 'task'?"),
        (["table", "RUNS", "--cols", "train.gama"], "Did you mean 'train.gamma'?"),
        (["table", "RUNS", "--rows", "task", "--cols", "env.task"], "env.task is given twice"),
        (["table", "RUNS", "-o", "t.doc"], "t.doc: its ending says no format"),
        (["table", "RUNS", "--columns", "coast"], "Did you mean 'cost'?"),
        (["ablation", "RUNS", "--axis", "train.gamma"], "train.gamma has one value only, 0.99, in these runs"),
        (["ablation", "RUNS", "--axis", "train.gamma"], "What varies: "),
        (["ablation", "RUNS", "--axis", "train.gma"], "Did you mean 'train.gamma'?"),
        (["curves", "RUNS", "-o", "c.gif"], "c.gif: a figure is written as .png, .pdf, .svg"),
        (["bars", "RUNS", "--metric", "best"], "--metric='best' is unknown"),
        (["bars", "RUNS", "-o", "RUNS/x/y.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    runs: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "x").write_text("a file, where a folder would have to be")
    assert said in refused(capsys, *(one.replace("RUNS", str(runs)) for one in arguments))


@pytest.mark.parametrize("command", ["table", "curves", "profiles"])
def test_without_a_finished_run_the_states_are_said(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(tmp_path, of("vdn"), "failed")
    assert "No run is finished: 1 run: 0 finished, 1 failed." in refused(capsys, command, tmp_path)


# What a run or sweep ends with


def test_a_summary_is_table_and_curves_with_what_is_missing(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed = unfinished(runs, of("qmix", 3), "failed")
    names = sorted(one.name for one in runs.iterdir())
    sweep = runs / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"runs": names}))
    with caplog.at_level("INFO", "qllm_exp"):
        summarise(sweep)
    text = (sweep / "table.md").read_text()
    listed = text.split("From the runs:")[1].split()
    assert [one for one in listed if one != "-"] == [name for name in names if name != failed.name]
    assert text.count("(n=3)") == 4 and text.count("Fewer than 5 seeds") == 2
    assert "Missing: qmix on lbf/8x8-2p-2f-coop-2s: 1 failed (s3)." in text and "Missing" in caplog.text
    assert (sweep / "curves.png").read_bytes().startswith(b"\x89PNG") and str(sweep / "table.md") in caplog.text


def test_curves_that_cannot_be_drawn_leave_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, of("vdn", 0), 0.5, steps=(0, 10, 20))
    make(tmp_path, of("vdn", 1), 0.5, steps=(0, 15, 30))
    with caplog.at_level("INFO", "qllm_exp"):
        summarise(tmp_path)
    assert "curves: not drawn: The runs of vdn" in caplog.text and "(n=2)" in (tmp_path / "table.md").read_text()
