"""The public Python API, as a notebook uses it."""

import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

import qllm_exp
from qllm_exp.errors import UserError

TINY = ["env=matrix", "train=quick", "train.total_steps=2000", "train.evaluation.every=1000", "device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, made by `run_sweep`."""
    folder = tmp_path_factory.mktemp("runs")
    runs = qllm_exp.run_sweep([*TINY, "mixer=tfcaf,vdn", f"dir={folder}"])
    assert list(runs.state) == ["finished"] * 2
    return folder


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import qllm_exp, sys; print([m for m in ('torch', 'numpy', 'hydra', 'pandas', 'argparse') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_documented_and_unknown_ones_are_errors() -> None:
    assert set(qllm_exp.__all__) <= set(dir(qllm_exp))
    for name in qllm_exp.__all__:
        text = getattr(qllm_exp, name).__doc__
        assert "Args:" in text and "Returns:" in text and "Raises:" in text, name
    with pytest.raises(AttributeError, match="no attribute 'load_run'"):
        _ = qllm_exp.load_run


def test_runs_are_a_frame_with_a_row_per_run(folder: Path) -> None:
    runs = qllm_exp.load_runs(folder)
    assert isinstance(runs, pandas.DataFrame) and len(runs) == 2
    assert set(runs["mixer.name"]) == set(runs.method) == {"tfcaf", "vdn"}
    assert {"env", "task", "seed", "final_return", "absolute_return", "train.learning_rate"} <= set(runs)
    assert (runs.env.unique(), runs.task.unique()) == (["matrix"], ["climbing"])
    assert len(qllm_exp.load_runs(folder, only=["mixer=vdn"])) == 1


def test_curves_are_a_frame_with_a_row_per_evaluation(folder: Path) -> None:
    curves = qllm_exp.load_curves(folder)
    last = curves[curves.method == "vdn"].iloc[-1]
    runs = qllm_exp.load_runs(folder, only=["mixer=vdn"])
    assert last.return_mean == runs.final_return[0] and list(curves.env_step[:3]) == [0, 1000, 2000]
    assert len(qllm_exp.load_curves(folder, kind="absolute")) == 2
    with pytest.raises(UserError, match="kind='absolut' is unknown"):
        qllm_exp.load_curves(folder, kind="absolut")


def test_a_run_that_is_finished_is_not_trained_again(folder: Path) -> None:
    (known,) = qllm_exp.load_runs(folder, only=["mixer=vdn"]).path
    before = (known / "metrics.jsonl").stat().st_mtime_ns
    result = qllm_exp.run([*TINY, "mixer=vdn", f"dir={folder}"])
    assert result.path == known and (known / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="Did you mean 'learning_rate'"):
        qllm_exp.run([*TINY, "+train.learning_rat=1e-3"])


def test_tables_and_figures_are_those_of_the_command(folder: Path, tmp_path: Path) -> None:
    assert {"tfcaf", "vdn"} <= set(str(qllm_exp.table(folder)).replace("|", " ").split())
    figure = qllm_exp.plot_curves(folder, output=tmp_path / "curves.svg")
    assert figure.axes and (tmp_path / "curves.svg").exists()


def test_a_policy_plays_in_the_environment_of_its_run(folder: Path) -> None:
    (path,) = qllm_exp.load_runs(folder, only=["mixer=tfcaf"]).path
    policy = qllm_exp.load_policy(path)
    first = policy.env.reset()
    actions = policy(first.obs, first.state, first.available_actions)
    assert actions.shape == (1, 2) and actions.dtype == torch.int64


def test_environments_are_made_by_name_and_their_options_checked() -> None:
    env = qllm_exp.make_env("lbf", "10x10-3p-3f-2s", num_envs=3, episode_limit=7)
    assert env.reset().obs.shape[:2] == (3, 3) and env.episode_limit == 7
    with pytest.raises(UserError, match="Did you mean 'task'"):
        qllm_exp.make_env("lbf", taks="8x8-2p-2f-coop-2s")
    with pytest.raises(UserError, match=r"env='lfb' is unknown\. Did you mean 'lbf'"):
        qllm_exp.make_env("lfb")


def test_stored_functions_are_found_by_task_and_by_file(folder: Path) -> None:
    bundled = qllm_exp.load_function("matrix/climbing")
    (path,) = qllm_exp.load_runs(folder, only=["mixer=tfcaf"]).path
    assert qllm_exp.load_function(path / "tfcaf.json").program.hash == bundled.program.hash
