"""Options of subcommands may stand before, between and after the other arguments."""

from pathlib import Path

import pytest

from qllm_exp import tfcaf
from qllm_exp.results.__main__ import main as results

OVERRIDES = ["env=lbf", "env.task=10x10-3p-3f-2s"]


@pytest.mark.parametrize(
    "command", [["generate"], ["list"], ["show", "KEY"], ["explain", "KEY"], ["verify", "f.py"], ["import", "f.py"]]
)
@pytest.mark.parametrize("position", range(3))
def test_overrides_stand_on_both_sides_of_an_option(command: list[str], position: int) -> None:
    arguments = [*OVERRIDES[:position], "--config-dir", "conf", *OVERRIDES[position:]]
    options = tfcaf._parse([*command, *arguments])
    assert (options.command, options.overrides, options.config_dir) == (command[0], OVERRIDES, ["conf"])
    assert tfcaf._parse(command).overrides == []


def test_sources_stand_on_both_sides_of_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert results(["table", str(tmp_path / "empty"), "--rows", "env", "nowhere"]) == 2
    assert "empty holds no runs and no sweeps" in capsys.readouterr().err
    assert results(["table", "--rows", "env", "nowhere", "--cols", "mixer", str(tmp_path)]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel"], "'tabel' is not a command. Did you mean 'table'? Commands: table, ablation, curves,"),
        ([], "the following arguments are required: COMMAND"),
        (["table", "--bogus"], "unrecognized arguments: --bogus"),
        (["sync", "--all"], "the following arguments are required: FOLDER"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        results(arguments)
    assert message in capsys.readouterr().err
