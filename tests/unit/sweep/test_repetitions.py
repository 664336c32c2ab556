"""A seed repeats a trial: a sweeper that searches never sees it, and gets the mean over the seeds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from qllm_exp.config.compose import CONF
from qllm_exp.errors import RunFailed, UserError
from qllm_exp.sweep import hydra_bridge
from qllm_exp.sweep.repetitions import Repetitions, repetitions


def sweep_config(*overrides, params=None):
    """Configuration of a sweep after Hydra's hooks, as a sweeper receives it."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
    if params is not None:
        config.hydra.sweeper.params = params
    Repetitions().on_multirun_start(config)
    return config


SEARCH = ("hydra/sweeper=basic", "train.gamma=0.9,0.99")


@pytest.mark.parametrize(
    ("typed", "params", "expected"),
    [
        ([], {}, [()]),
        (["seed=0,1,2"], {}, [("seed=0",), ("seed=1",), ("seed=2",)]),
        (["seed=range(0,2)"], {}, [("seed=0",), ("seed=1",)]),
        (["seed=3"], {"seed": "0-9"}, [("seed=3",)]),
        ([], {"seed": "0-1"}, [("seed=0",), ("seed=1",)]),
        (["tfcaf.sample=0,1", "seed=5"], {}, [("tfcaf.sample=0", "seed=5"), ("tfcaf.sample=1", "seed=5")]),
    ],
)
def test_a_searching_sweeper_never_sees_the_repetitions(typed, params, expected):
    config = sweep_config(*SEARCH, *typed, params={"env.reward": "sum,mean"} | params)
    assert list(config.hydra.overrides.task) == ["train.gamma=0.9,0.99"]
    assert dict(config.hydra.sweeper.params) == {"env.reward": "sum,mean"}
    assert repetitions(config) == expected


def test_the_grid_sweeper_multiplies_the_seeds_out_itself():
    config = sweep_config("train.gamma=0.9,0.99", "seed=0,1")
    assert list(config.hydra.overrides.task) == ["train.gamma=0.9,0.99", "seed=0,1"]
    assert repetitions(config) == [()]


def test_a_seed_to_search_is_refused():
    with pytest.raises(UserError, match=r"seed is a repetition, not an option to search.*write seed=0-4"):
        repetitions(sweep_config(*SEARCH, "seed=interval(0,9)"))


def launched(monkeypatch, results, overrides=("seed=0,1",)):
    """What a sweeper gets for two trials whose runs have these results: a return, or None for a failed run."""

    def directory(number, result):
        return SimpleNamespace(path=Path(f"run{number}"), result=lambda: result)

    def launch(combinations, compose, explain, launcher, arguments, is_whole, search):
        assert [combination[1:] for combination in combinations] == [("seed=0",), ("seed=1",)] * 2
        directories = [
            directory(number, None if result is None else {"final_return": result})
            for number, result in enumerate(results)
        ]
        runs = [SimpleNamespace(directory=directory) for directory in directories]
        outcomes = [SimpleNamespace(directory=d, error="" if d.result() else "diverged") for d in directories]
        plan = SimpleNamespace(runs=runs, run_index=range(4), sweep=SimpleNamespace(dry_run=False))
        return SimpleNamespace(plan=plan, outcomes=outcomes, exit_code=0)

    monkeypatch.setattr(hydra_bridge, "launch", launch)
    config = sweep_config(*SEARCH, *overrides)
    trials = [["train.gamma=0.9"], ["train.gamma=0.99"]]
    returns, code = hydra_bridge.launch_jobs(None, config, [], trials, lambda is_grid: None, lambda run, launcher: None)
    assert code == 0 and [job_return.overrides for job_return in returns] == trials
    return returns


def test_the_objective_of_a_trial_is_the_mean_over_its_seeds(monkeypatch):
    assert [trial.return_value for trial in launched(monkeypatch, [1.0, 2.0, 5.0, -1.0])] == [1.5, 2.0]


def test_a_trial_fails_with_one_of_its_runs(monkeypatch):
    failed, finished = launched(monkeypatch, [1.0, None, 0.0, 0.5])
    assert finished.return_value == 0.25
    with pytest.raises(RunFailed, match="run1: diverged"):
        _ = failed.return_value
