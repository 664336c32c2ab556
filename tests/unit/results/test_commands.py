"""`python -m qllm_exp.results`: output, files and error messages."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.config import schema
from qllm_exp.results.__main__ import main
from qllm_exp.results.summary import summarise


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        make_run(tmp_path / "runs", run_config("qmix", seed), 0.5 + 0.1 * seed)
        make_run(tmp_path / "runs", run_config("vdn", seed, train=schema.TrainConfig(hidden=32)), 0.3 + 0.1 * seed)
    return tmp_path / "runs"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_module_runs(runs: Path) -> None:
    command = [sys.executable, "-m", "qllm_exp.results", "table", "runs"]
    done = subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "| lbf/8x8-2p-2f-coop-2s | 0.600 [" in done.stdout and "(n=3)" in done.stdout


@pytest.mark.parametrize("command", ["", "table", "ablation", "curves", "profiles", "improvement", "bars", "report"])
def test_help_lists_commands_and_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    output = capsys.readouterr().out
    assert ended.value.code == 0 and ("FOLDER" in output if command else "improvement" in output)


def test_runs_is_the_default_folder(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["table"]) == 0 and "(n=3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "begin"), [("md", "Return"), ("tex", "% needs"), ("csv", "env,task"), ("html", "<!DO")]
)
def test_the_format_follows_the_ending_of_the_file(
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
        make_run(tmp_path, run_config("vdn", train=schema.TrainConfig(hidden=hidden)), 0.3)
    assert main(["ablation", str(tmp_path), "--axis", "train.hidden"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("| lbf")]
    assert [line[3] for line in table] == ["32", "64"] and table[1][-2] == "default"


def test_all_commands_filter_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_unfinished_run(runs, run_config("vdn", 9), "failed")
    assert main(["table", str(runs), "--only", "mixer=qmix", "--only", "seed=1-2"]) == 0
    output = capsys.readouterr().out
    assert "qmix" in output and "vdn" not in output and "(n=2)" in output
    for command in ("curves", "profiles", "bars"):
        file = runs.parent / f"{command}.svg"
        assert main([command, str(runs), "--only", "mixer=vdn", "-o", str(file)]) == 0
        text = file.read_text()
        assert "(n=3)" in text
        assert "qmix" not in text and "1 failed (s9)" in text
    capsys.readouterr()
    assert "Only vdn found" in refused(capsys, "improvement", runs, "--only", "mixer=vdn")


def test_lines_may_stand_for_any_keys(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs.parent / "c.svg"
    assert main(["curves", str(runs), "--by", "mixer,seed", "-o", str(file)]) == 0
    assert all(f"{mixer} seed={seed} (n=1)" in file.read_text() for mixer in ("qmix", "vdn") for seed in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "nowhere"], "nowhere is not a folder"),
        (["table", "RUNS", "--only", "mixer=qmx"], "has mixer=qmx. Did you mean 'qmix'? Available: qmix, vdn."),
        (["ablation", "RUNS", "--axis", "mixer", "--only", "hidden=32"], "Did you mean 'train.hidden'?"),
        (["bars", "RUNS", "--only", "qmix"], "--only qmix: expected KEY=VALUE,..."),
        (["curves", "RUNS", "--by", "mixr"], "Did you mean 'mixer'?"),
        (["table", "RUNS", "-o", "table"], "table: its ending is not that of a known format. Use .md, .tex"),
        (["bars", "RUNS", "-o", "bars"], "bars: a figure is written as .png, .pdf, .svg. Give e.g. -o bars.pdf."),
        (
            ["table", "RUNS", "--metric", "finel"],
            "--metric='finel' is unknown. Did you mean 'final'? Allowed: final, absolute",
        ),
        (["table", "RUNS", "--stat", "mode"], "--stat='mode' is unknown."),
        (["table", "RUNS", "--format", "latx"], "Did you mean 'latex'?"),
        (["table", "RUNS", "--rows", "tsk"], "'tsk' is not a key of these runs. Did you mean 'task'?"),
        (["table", "RUNS", "--cols", "train.gama"], "Did you mean 'train.gamma'?"),
        (["table", "RUNS", "--rows", "task", "--cols", "env.task"], "env.task is given twice"),
        (["table", "RUNS", "-o", "t.doc"], "t.doc: its ending is not that of a known format"),
        (["table", "RUNS", "--columns", "coast"], "Did you mean 'cost'?"),
        (["ablation", "RUNS", "--axis", "train.gamma"], "train.gamma has only one value, 0.99, in these runs"),
        (["ablation", "RUNS", "--axis", "train.gamma"], "Settings that vary: "),
        (["ablation", "RUNS", "--axis", "train.gma"], "Did you mean 'train.gamma'?"),
        (["curves", "RUNS", "-o", "c.gif"], "c.gif: a figure is written as .png, .pdf, .svg"),
        (["bars", "RUNS", "--metric", "best"], "--metric='best' is unknown"),
        (["bars", "RUNS", "-o", "RUNS/x/y.png"], "cannot be written"),
        (["table", "x" * 300], "xxx/dataset.json: File name too long."),
    ],
)
def test_errors_are_one_clear_line(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "x").write_text("a file, where a folder would have to be")
    assert message in refused(capsys, *(argument.replace("RUNS", str(runs)) for argument in arguments))


@pytest.mark.parametrize("command", ["table", "curves", "profiles"])
def test_without_a_finished_run_the_states_are_counted(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_unfinished_run(tmp_path, run_config("vdn"), "failed")
    assert "No run has finished (1 run: 0 finished, 1 failed)." in refused(capsys, command, tmp_path)


# Summary of a run or sweep


def test_a_summary_is_table_and_curves_with_missing_runs(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed = make_unfinished_run(runs, run_config("qmix", 3), "failed")
    names = sorted(path.name for path in runs.iterdir())
    sweep = runs / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"runs": names}))
    with caplog.at_level("INFO", "qllm_exp"):
        summarise(sweep)
    text = (sweep / "table.md").read_text()
    listed = text.split("From the runs:")[1].split()
    assert [name for name in listed if name != "-"] == [name for name in names if name != failed.name]
    assert text.count("(n=3)") == 4 and text.count("Fewer than 5 seeds") == 2
    assert "Missing: qmix on lbf/8x8-2p-2f-coop-2s: 1 failed (s3)." in text and "Missing" in caplog.text
    assert (sweep / "curves.png").read_bytes().startswith(b"\x89PNG") and str(sweep / "table.md") in caplog.text


def test_the_table_is_written_even_if_curves_cannot_be_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, run_config("vdn", 0), 0.5, steps=(0, 10, 20))
    make_run(tmp_path, run_config("vdn", 1), 0.5, steps=(0, 15, 30))
    with caplog.at_level("INFO", "qllm_exp"):
        summarise(tmp_path)
    assert "curves: not drawn: The runs of vdn" in caplog.text and "(n=2)" in (tmp_path / "table.md").read_text()
