"""sweep.tune: equal trials for every method, seeds that no comparison has, the choice, and the table of both settings."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from run_folders import make_run

from qllm_exp.config import schema
from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run, run_name
from qllm_exp.config.overrides import to_hydra_arguments
from qllm_exp.errors import UserError
from qllm_exp.results.export import export
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.sources import to_folders
from qllm_exp.results.tables.table import comparison
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.launch import LaunchResult
from qllm_exp.sweep.launcher import NEXT_GROUP
from qllm_exp.sweep.plan import Plan
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.sweep.tuning import launch_tuned, read_methods

NO_FUNCTION = json.dumps(None)  # as `make_run` names a run without a function
RATES = [0.0001, 0.0005, 0.001, 0.002]  # the second is the fixed one
SPACE: dict[str, dict[str, list[Any]]] = {
    "vdn": {"train.learning_rate": RATES},
    "qmix": {"train.learning_rate": RATES, "mixer.embed": [32, 64], "algorithm.double_q": [True, False]},
}
COMMAND = ["sweep.name=t", "sweep.tune.trials=3", "sweep.tune.seeds=2"]

Compose = Callable[[tuple[str, ...]], DictConfig]


@pytest.fixture
def composer() -> Iterator[Compose]:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield lambda overrides: compose("config", to_hydra_arguments(overrides))


def combinations(*extra: str, mixers: tuple[str, ...] = ("vdn", "qmix"), tasks: tuple[str, ...] = ("climbing",)) -> Any:
    seeds = ("seed=0", "seed=1")
    axes = [(f"env.task={task}", f"mixer={mixer}", seed) for task in tasks for mixer in mixers for seed in seeds]
    return [("env=matrix", *COMMAND, *extra, *axis) for axis in axes]


def test_every_method_gets_as_many_different_trials_the_fixed_settings_first(composer: Compose) -> None:
    asked = combinations(tasks=("climbing", "penalty-0"))
    methods, seeds, sweep = read_methods(asked, SPACE, composer)
    assert [(method.name, method.task) for method in methods] == [
        (name, f"matrix/{task}") for task in ("climbing", "penalty-0") for name in ("vdn", "qmix")
    ]
    assert seeds == ["seed=0", "seed=1"] and sweep.tune == schema.TuneConfig(trials=3, seeds=2)
    for method in methods:
        runs = [load_run(composer(method.setting(number))) for number in range(3)]
        assert method.trials[0] == () and len({run_name(run, None) for run in runs}) == 3, (
            "none is the fixed setting again"
        )
        assert {key for trial in method.trials for key in (text.partition("=")[0] for text in trial)} == set(
            SPACE[method.name]
        )
    assert methods[0].trials == methods[2].trials, "the same on every task"
    assert methods == read_methods(asked, SPACE, composer)[0], "the same command tries the same"


def test_a_trial_replaces_what_the_command_fixes(composer: Compose) -> None:
    methods, _, _ = read_methods(combinations("train.learning_rate=0.002", mixers=("vdn",)), SPACE, composer)
    rates = [load_run(composer(methods[0].setting(number))).train.learning_rate for number in range(3)]
    assert rates[0] == 0.002 and len(set(rates)) == 3 and set(rates) <= set(RATES)


@pytest.mark.parametrize(
    ("extra", "space", "message"),
    [
        ((), {"vdn": SPACE["vdn"]}, "hydra.sweeper.space has no values for qmix. It has vdn."),
        (
            ("sweep.tune.trials=5",),
            SPACE,
            "has 4 settings of vdn, the fixed one included, and every method gets sweep.tune.trials=5",
        ),
        (("sweep.tune.trials=1",), SPACE, "sweep.tune.trials=1 would try the fixed settings alone"),
        (("sweep.name=''",), SPACE, "Type a name: sweep.name=tuned"),
        (("sweep.seeds=auto",), SPACE, "sweep.tune needs the same seeds for every method"),
        ((), SPACE | {"vdn": {"train.rate": [1]}}, "'train.rate' is not an option of vdn"),
        ((), SPACE | {"vdn": {"train.total_steps": [1]}}, "train.total_steps must be equal for all trials of vdn"),
        ((), SPACE | {"vdn": {"seed": [1]}}, "seed must be equal"),
        ((), SPACE | {"vdn": {"algorithm.target_period": [100, 300]}}, "algorithm.target_period has no effect with"),
    ],
)
def test_what_cannot_be_tuned_equally_is_refused(
    composer: Compose, extra: tuple[str, ...], space: dict[str, dict[str, list[Any]]], message: str
) -> None:
    with pytest.raises(UserError) as error:
        read_methods(combinations(*extra), space, composer)
    assert message in str(error.value)


def test_two_fixed_settings_of_a_method_are_refused(composer: Compose) -> None:
    asked = [*combinations(mixers=("vdn",)), *combinations("train.gamma=0.9", mixers=("vdn",))]
    with pytest.raises(UserError, match=r"vdn on matrix/climbing has several fixed settings"):
        read_methods(asked, SPACE, composer)


class Start:
    """Stands in for `launch`: makes every run finished, and keeps the record.

    Args:
        folder: for run directories.
        compose: Hydra's function.
        pruned: whether trials with the highest learning rate are pruned.
        finish: whether runs are finished.
    """

    def __init__(self, folder: Path, compose: Compose, pruned: bool = False, finish: bool = True) -> None:
        self.folder, self.compose, self.pruned, self.finish = folder, compose, pruned, finish
        self.calls: list[tuple[list[schema.RunConfig], dict[str, Any]]] = []
        self.planned: list[list[schema.RunConfig]] = []

    def __call__(self, asked: list[tuple[str, ...]], **options: Any) -> LaunchResult:
        configs = [load_run(self.compose(overrides)) for overrides in asked]
        names: dict[str, PreparedRun] = {}
        index = []
        for config in configs:
            name = run_name(config, NO_FUNCTION)
            if name not in names:
                names[name] = PreparedRun(config, RunDirectory(self.folder / name), None, NO_FUNCTION)
                if not options.get("only_plan"):
                    self.make(names[name])
            index.append(list(names).index(name))
        plan = Plan(list(names.values()), run_index=index, sweep=configs[0].sweep, dir=self.folder)
        if options.get("only_plan"):
            self.planned.append(configs)
            return LaunchResult(plan, [])
        self.calls.append((configs, options))
        entries = options["entries"](plan) if "entries" in options else {}
        Sweep.create(plan.folder, list(names), {}, 0, "c", **entries)
        return LaunchResult(plan, [])

    def make(self, run: PreparedRun) -> None:
        """Finish a run: qmix with the highest rate is best, vdn with the fixed one."""
        rate, qmix = run.config.train.learning_rate, run.config.mixer.name == "qmix"
        if not self.finish or run.directory.path.exists():
            return
        make_run(self.folder, run.config, rate if qmix else -abs(rate - 0.0005))
        if self.pruned and rate == max(RATES):
            run.directory.result_path.unlink()
            row = {"kind": "evaluation", "env_step": 0, "return_mean": 0.0, "wall_s": 3600.0}
            run.directory.metrics.write_text(json.dumps(row) + "\n")
            run.directory.prune("at step 5 because")


def all_trials(*extra: str) -> Any:
    return combinations("sweep.tune.trials=4", *extra)


def launched(folder: Path, composer: Compose, **options: Any) -> Start:
    start = Start(folder, composer, **options)
    space = {"vdn": SPACE["vdn"], "qmix": {"train.learning_rate": RATES}}
    assert launch_tuned(all_trials("sweep.prune=median"), space, composer, start, ["-m"]) == 0
    return start


def test_no_seed_that_chose_a_setting_is_in_the_comparison(tmp_path: Path, composer: Compose) -> None:
    (trials, _), (final, _) = launched(tmp_path, composer).calls
    assert len(trials) == 2 * 4 * 2 and len(final) == 2 * 2 * 2
    assert {run.seed for run in trials} == {1_000_000, 1_000_001} and {run.seed for run in final} == {0, 1}
    assert {run.seed for run in trials} <= set(schema.SEARCH_SEEDS) and all(run.sweep.search for run in trials)
    assert {(run.sweep.name, run.sweep.prune) for run in trials} == {("t_trials", "median")}
    assert {(run.sweep.name, run.sweep.prune) for run in final} == {("t", "none")}, "no run of the comparison is pruned"
    assert [(run.mixer.name, run.train.learning_rate) for run in final[::2]] == [
        ("vdn", 0.0005), ("qmix", 0.0005), ("vdn", 0.0005), ("qmix", 0.002)
    ]  # fmt: skip


def test_the_table_has_fixed_beside_tuned_settings_what_was_chosen_and_the_cost(
    tmp_path: Path, composer: Compose
) -> None:
    launched(tmp_path / "runs", composer)
    archive = export(collect([tmp_path / "runs/t"]), [tmp_path / "runs/t"], tmp_path / "archive")
    for source in (tmp_path / "runs/t", tmp_path / "runs", *to_folders([archive])):
        collection = collect([source])
        sheet, cells = comparison(collection)
        assert sheet.columns == ["qmix fixed", "qmix tuned", "vdn fixed", "vdn tuned"]
        assert {cell.estimate.runs for cell in cells.cells.values()} == {2}, "without the seeds of the trials"
        notes = "\n".join(sheet.notes)
        assert (
            "4 trials of each method on each task, the fixed settings among them, with 2 seeds (1000000-1000001)"
            in notes
        )
        assert (
            "Chosen on matrix/climbing: vdn: the fixed settings (0.000); qmix: train.learning_rate=0.002 (0.002, fixed"
            in notes
        )
        assert "qmix 8 runs, 1,600,000 steps, 0.22 core hours" in notes
        assert ("Left out: 16 runs with seeds by which settings were chosen" in notes) == (source == tmp_path / "runs")
    assert len(collect([tmp_path / "runs/t_trials"]).finished) == 16, "the trials by themselves"


def test_a_pruned_trial_is_not_chosen(tmp_path: Path, composer: Compose) -> None:
    start = launched(tmp_path, composer, pruned=True)
    assert start.calls[1][0][-1].train.learning_rate == 0.001
    cost = Sweep(tmp_path / "t").record.decisions[-1]
    assert "qmix 8 runs (2 pruned), 1,200,000 steps, 2.2 core hours" in cost, cost


def test_the_comparison_waits_for_the_trials_and_starts_none_again_that_nobody_asked_for(
    tmp_path: Path, composer: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start(tmp_path, composer, finish=False)
    assert launch_tuned(combinations(), SPACE, composer, start, ["-m"]) == 0
    assert [options["only_plan"] for _, options in start.calls] == [False] and start.calls[0][1]["next_command"] == [
        "-m"
    ]
    monkeypatch.setenv(NEXT_GROUP, "1")
    assert launch_tuned(combinations(), SPACE, composer, start, ["-m"]) == 1
    assert len(start.calls) == 1 and len(start.planned) == 3


def test_a_comparison_is_not_continued_with_other_trials(tmp_path: Path, composer: Compose) -> None:
    launched(tmp_path, composer)
    start = Start(tmp_path, composer)
    with pytest.raises(UserError, match=r"was begun with sweep.tune=.*'trials': 4.* cannot be continued with"):
        launch_tuned(all_trials("sweep.tune.trials=3"), SPACE, composer, start, ["-m"])
    assert replace(Sweep(tmp_path / "t").record, labels={}).decide["seeds"] == 2
