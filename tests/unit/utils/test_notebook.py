"""What notebooks use: commands from a cell, configurations from words, figures as objects, tables that show themselves."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_folders import make_run, run_config

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.errors import UserError
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.figures.ablation_effects import effects
from qllm_exp.results.records.collect import Collection, collect
from qllm_exp.results.tables.sheet import markdown
from qllm_exp.results.tables.table import ablation, comparison
from qllm_exp.utils.notebook import shell


@pytest.fixture
def runs(tmp_path: Path) -> Collection:
    for rate, worth in ((0.0005, 0.4), (0.001, 0.6), (0.002, 0.3)):
        for seed in range(3):
            run = run_config("qmix", seed, train=schema.TrainConfig(learning_rate=rate))
            make_run(tmp_path / "runs", run, worth + 0.03 * seed)
    return collect([tmp_path / "runs"])


def test_a_command_of_several_lines_prints_what_it_says(
    runs: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell("""python -m qllm_exp.results ablation runs
             --axis train.learning_rate""")
    assert capsys.readouterr().out == markdown([ablation(runs, ["train.learning_rate"])[0]])


@pytest.mark.parametrize("command", ["rm -rf runs", "python -m pip list", "python", "python -m qllm_exp_2 env=lbf"])
def test_only_commands_of_the_package_are_run(command: str) -> None:
    with pytest.raises(UserError, match=r"Write python -m qllm_exp"):
        shell(command)


def test_a_command_that_fails_is_an_error_after_it_said_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^python -m qllm_exp.results table nowhere ended with exit code 2"):
        shell("python -m qllm_exp.results table nowhere")
    assert capsys.readouterr().out.startswith("error: nowhere is not a folder")


def test_words_make_the_configuration_that_the_command_makes() -> None:
    run = compose_run(["env=matrix", "env.task=climbing", "mixer=qmix", "train.gamma=0.5"])
    assert isinstance(run.mixer, QmixConfig) and (run.env.task, run.train.gamma) == ("climbing", 0.5)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mixer", "is not of the form KEY=VALUE"),
        ("mixer=qmx", r"mixer=qmx is unknown. Did you mean 'qmix'\?"),
        ("train.gama=0.5", r"Did you mean 'train.gamma'\?"),
        ("train.gamma=2", "out of bounds"),
    ],
)
def test_words_that_the_command_refuses_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_run([word])


@pytest.mark.parametrize(
    "draw",
    [per_task.curves, per_task.bars, across_tasks.aggregated_curves, across_tasks.profiles, across_tasks.improvement],
)
def test_without_a_path_a_figure_is_given_back_and_nothing_written(
    runs: Collection, tmp_path: Path, draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert isinstance(draw(runs.finished), Figure)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_shows_itself_as_markdown(runs: Collection) -> None:
    table, _ = comparison(runs)
    assert table._repr_markdown_() == markdown([table])


def test_effects_are_the_differences_of_the_table_with_their_intervals(runs: Collection, tmp_path: Path) -> None:
    table, _ = ablation(runs, ["train.learning_rate"])
    figure = effects(table, tmp_path / "effects.png")
    assert (tmp_path / "effects.png").read_bytes().startswith(b"\x89PNG")
    (axis,) = figure.axes
    assert axis.get_title() == "lbf/8x8-2p-2f-coop-2s"
    names = [one.get_text() for one in axis.get_yticklabels()]
    assert names == ["train.learning_rate=0.001 (n=3)", "train.learning_rate=0.002 (n=3)"]
    seen = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert np.allclose(seen, [0.2, -0.1]), "less the default, 0.0005"
    spans = [container.lines[2][0].get_segments()[0][:, 0] for container in axis.containers]
    cells = [row[1][1].estimate for row in table.rows if not isinstance(row[1][1], str)]
    assert np.allclose(spans, [(one.low, one.high) for one in cells])
    assert "Default: train.learning_rate=0.0005" in figure.get_supxlabel() and "Fewer than 5" in figure.get_supxlabel()


def test_a_panel_of_effects_per_task(tmp_path: Path) -> None:
    for task in ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"):
        for rate in (0.0005, 0.001):
            for seed in range(2):
                run = run_config("qmix", seed, task, train=schema.TrainConfig(learning_rate=rate))
                make_run(tmp_path, run, rate * 100 + 0.01 * seed)
    figure = effects(ablation(collect([tmp_path]), ["train.learning_rate"])[0])
    assert {axis.get_title() for axis in figure.axes} == {"lbf/8x8-2p-2f-coop-2s", "lbf/10x10-3p-3f-2s"}


def test_a_table_without_differences_has_no_effects(runs: Collection) -> None:
    with pytest.raises(UserError, match="no difference to draw"):
        effects(comparison(runs)[0])
