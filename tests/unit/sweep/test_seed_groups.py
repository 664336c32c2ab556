"""sweep.seeds=auto: which runs are needed by now, from what is on disk, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import make_run, run_config

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.config.load import run_name
from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.table import comparison
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import NEW, RunState
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.launch import run_groups
from qllm_exp.sweep.launcher import NEXT_GROUP, Work
from qllm_exp.sweep.plan import Plan
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.sweep.seed_groups import AUTO, SeedGroups, all_seeds, without_seeds
from qllm_exp.sweep.slurm import Slurm

NO_FUNCTION = json.dumps(None)  # as `make_run` names a run without a function
DECIDE = schema.DecideConfig(first=4, step=4, most=12)


def make_groups(
    folder: Path, mixers: Sequence[str] = ("none", "qmix", "vdn"), tasks: Sequence[str] = ("a",)
) -> SeedGroups:
    """Return the groups of a plan of new runs."""
    combinations, runs = [], []
    for task in tasks:
        for mixer in mixers:
            for (seed,) in all_seeds(DECIDE):
                config = run_config(mixer, int(seed.removeprefix("seed=")), task)
                combinations.append((f"env.task={task}", f"mixer={mixer}", seed))
                directory = RunDirectory(folder / run_name(config, NO_FUNCTION))
                runs.append(PreparedRun(config, directory, None, NO_FUNCTION))
    states = [RunState(run.directory, NEW) for run in runs]
    sweep = schema.SweepConfig(name="s", seeds=AUTO, decide=DECIDE)
    return SeedGroups(Plan(runs, states, list(range(len(runs))), sweep=sweep, dir=folder), combinations)


def score(config: schema.RunConfig) -> float:
    """A score of a run: none and vdn do not differ, and qmix is far better."""
    return (5.0 if config.mixer.name == "qmix" else 0.0) + (config.seed * 7 % 12 + len(config.mixer.name)) / 12


def finish(folder: Path, run: PreparedRun) -> None:
    if not run.directory.path.exists():
        make_run(folder, run.config, score(run.config))


def seeds(plan: Plan) -> dict[str, int]:
    """Return the number of needed seeds of each method and task."""
    numbers: dict[str, int] = {}
    for run in plan.runs:
        key = f"{run.config.env.task} {run.config.mixer.name}"
        numbers[key] = numbers.get(key, 0) + 1
    return numbers


def test_only_methods_with_an_undecided_pair_get_further_seeds(tmp_path: Path) -> None:
    groups = make_groups(tmp_path)
    assert seeds(groups.needed()) == {"a none": 4, "a qmix": 4, "a vdn": 4}
    assert "lbf/a: q_learning" not in "".join(groups.report())
    needed: list[dict[str, int]] = []
    for _ in range(3):
        part = groups.needed()
        for run in part.runs:
            finish(tmp_path, run)
        needed.append(seeds(part))
    assert needed[0]["a qmix"] == 4 and needed[-1] == seeds(groups.needed()), "nothing is left to do"
    assert needed[-1]["a none"] == needed[-1]["a vdn"] == 12 > needed[-1]["a qmix"]
    report = "\n".join(groups.report())
    assert "qmix is better than" in report and "vdn are not decided (12 seeds, the most)" in report
    total = sum(needed[-1].values())
    assert f"Cost: {total} runs instead of 36 with 12 seeds each ({100 * (1 - total / 36):.0f} % fewer)." in report
    assert make_groups(tmp_path).report() == groups.report(), "the same from what is on disk"


def test_a_run_without_a_result_holds_up_its_own_task_alone(tmp_path: Path) -> None:
    groups = make_groups(tmp_path, ("none", "vdn"), ("a", "b"))
    first = groups.needed().runs
    for run in first[1:]:
        finish(tmp_path, run)
    assert seeds(groups.needed()) == {"a none": 4, "a vdn": 4, "b none": 8, "b vdn": 8}
    assert first[0].directory in [run.directory for run in groups.needed().to_run]


def test_methods_are_named_by_what_differs(tmp_path: Path) -> None:
    groups = make_groups(tmp_path, ("none", "vdn"))
    combinations = [(*overrides, "train.gamma=0.9") for overrides in groups.combinations]
    runs = [replace(run, config=replace(run.config, train=schema.TrainConfig(gamma=0.9))) for run in groups.plan.runs]
    plan = replace(groups.plan, runs=[*groups.plan.runs, *runs], run_index=list(range(2 * len(runs))))
    both = SeedGroups(plan, [*((*o, "train.gamma=0.99") for o in groups.combinations), *combinations])
    text = "\n".join(both.report())
    assert "train.gamma=0.9 and" in text and "vdn train.gamma=0.99" in text


class Recorder:
    """A launcher that finishes its runs, or submits them."""

    def __init__(self, folder: Path, waits: bool, failing: Sequence[str] = ()) -> None:
        self.folder, self.waits, self.failing = folder, waits, failing
        self.works: list[Work] = []

    def start(self, sweep: Sweep, work: Work) -> list[RunOutcome]:
        self.works.append(work)
        if not self.waits:
            return []
        for directory in work.directories:
            if directory.path.name not in self.failing:
                config = next(run.config for run in self.runs if run.directory.path == directory.path)
                make_run(self.folder, config, score(config))
        return [RunOutcome(d, "no" if d.path.name in self.failing else "") for d in work.directories]

    def options(self) -> dict[str, str]:
        return {"name": "local"}

    def max_parallel(self, device: str) -> int:
        return 1

    runs: Sequence[PreparedRun] = ()


def start(groups: SeedGroups, launcher: Recorder) -> tuple[list[RunOutcome], Plan]:
    launcher.runs = groups.plan.runs
    _, outcomes, _ = run_groups(groups, launcher, "c", ["-m", "sweep.seeds=auto"])  # type: ignore[arg-type]
    return outcomes, groups.needed()


def test_other_rules_of_an_environment_are_another_task(tmp_path: Path) -> None:
    combinations, runs = [], []
    for penalty in (-0.5, -1.5):
        for mixer in ("vdn", "qmix"):
            copies = 32 if mixer == "vdn" else 128  # as an on-policy algorithm has its own number
            config = run_config(mixer, 0, "10x10-8h-8p", "pursuit", {"penalty": penalty, "num_envs": copies})
            combinations.append((f"env.penalty={penalty:g}", f"mixer={mixer}", "seed=0"))
            runs.append(PreparedRun(config, RunDirectory(tmp_path / run_name(config, NO_FUNCTION)), None, NO_FUNCTION))
    states = [RunState(run.directory, NEW) for run in runs]
    sweep = schema.SweepConfig(name="s", seeds=AUTO, decide=replace(DECIDE, first=1, step=1, most=1))
    groups = SeedGroups(Plan(runs, states, list(range(len(runs))), sweep=sweep, dir=tmp_path), combinations)
    assert [line.partition(": ")[0] for line in groups.report()[1:-1]] == [
        f"pursuit/10x10-8h-8p env.penalty={penalty}" for penalty in (-0.5, -1.5)
    ]


def test_one_group_after_another_starts_until_all_is_decided_and_a_run_that_fails_starts_once(tmp_path: Path) -> None:
    groups = make_groups(tmp_path, ("none", "vdn"), ("a", "b"))
    failing = groups.plan.runs[0].directory.path.name
    launcher = Recorder(tmp_path, True, [failing])
    outcomes, part = start(groups, launcher)
    assert [len(work.directories) for work in launcher.works] == [16, 8, 8]
    assert [outcome.error for outcome in outcomes].count("no") == 1
    assert seeds(part) == {"a none": 4, "a vdn": 4, "b none": 12, "b vdn": 12}
    again = Recorder(tmp_path, True)
    start(make_groups(tmp_path, ("none", "vdn"), ("a", "b")), again)
    assert [len(work.directories) for work in again.works] == [1, 8, 8], "the same command starts it again, and goes on"
    sheet, _ = comparison(collect([tmp_path / "s"]))
    assert any("none and vdn are not decided (" in note for note in sheet.notes) and any(
        "Cost:" in n for n in sheet.notes
    )


def test_a_launcher_that_does_not_wait_gets_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = make_groups(tmp_path, ("none", "vdn"))
    launcher = Recorder(tmp_path, False)
    start(groups, launcher)
    (work,) = launcher.works
    assert len(work.directories) == 8 and list(work.next_command) == ["-m", "sweep.seeds=auto"]
    for run in groups.needed().runs[1:]:
        finish(tmp_path, run)
    failed = groups.plan.runs[0].directory
    failed.path.mkdir()
    (failed.path / "status.json").write_text(json.dumps({"state": "failed", "host": "elsewhere"}))
    monkeypatch.setenv(NEXT_GROUP, "1")
    later = Recorder(tmp_path, False)
    start(groups, later)
    assert later.works == [], "a command that no user typed does not start a failed run again"
    monkeypatch.delenv(NEXT_GROUP)
    start(groups, later)
    assert [directory.path for work in later.works for directory in work.directories] == [failed.path]


def test_on_slurm_a_dependent_job_runs_the_command_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qllm_exp.sweep import slurm

    folder = tmp_path / "bin"
    folder.mkdir()
    sbatch = folder / "sbatch"
    sbatch.write_text(
        f'#!/bin/bash\necho "$@" > {tmp_path}/options\n(cat; echo "next=$QLLM_EXP_NEXT_GROUP") > {tmp_path}/script\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm, "_run_sbatch", lambda folder, environment: ("17", []))
    directories = [RunDirectory(tmp_path / f"run{number}") for number in range(2)]
    sweep = Sweep.create(tmp_path / "sweep", ["run0", "run1"], {"name": "slurm"}, 0, "")
    work = Work(
        directories,
        sweep.failure_limit(),
        lambda run: run.create(run_config("vdn"), None),
        statuses={},
        next_command=["-m", "env=lbf,mpe", "train.x=a b"],
    )
    Slurm(partition="cpu", setup=["module load gcc"], python="python3").start(sweep, work)
    options, script = (tmp_path / "options").read_text(), (tmp_path / "script").read_text()
    assert "--dependency=afterany:17" in options and "--partition=cpu" in options and "--time=60" in options
    assert script.splitlines()[1:3] == ["module load gcc", "python3 -m qllm_exp -m env=lbf,mpe 'train.x=a b'"]
    assert "next=1" in script


def test_a_sweep_cannot_be_continued_with_other_options(tmp_path: Path) -> None:
    def create(decide: dict[str, int] | None) -> Sweep:
        return Sweep.create(tmp_path / "s", ["r"], {"name": "local"}, 0, "", decide, ["line"])

    create({"most": 10})
    assert create({"most": 10}).record.decisions == ["line"]
    for other in ({"most": 20}, None):
        with pytest.raises(UserError, match=r"was begun with sweep.seeds=auto .* Choose another sweep\.name"):
            create(other)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compares methods, and lbf/a has only vdn\. Add another one"):
        make_groups(tmp_path, ["vdn"])
    with pytest.raises(UserError, match=r"sweep\.decide\.most=3 is smaller than sweep\.decide\.first=5"):
        all_seeds(schema.DecideConfig(most=3))
    with pytest.raises(UserError, match=r"sweep\.decide\.most=100000 is out of bounds\. Allowed: 2 to 1000"):
        compose_run(["sweep.decide.most=100000"])  # every run that may be needed is planned
    with pytest.raises(UserError, match=r"chooses the seeds\. Remove seed=0,1"):
        without_seeds([("seed=0",), ("seed=1",)], ["seed=0,1", "mixer=vdn"])
    with pytest.raises(UserError, match="samples of one method"):
        without_seeds([("tfcaf.sample=0",), ("tfcaf.sample=1",)], [])
    preset = [("mixer=vdn", "seed=0"), ("mixer=vdn", "seed=1"), ("mixer=qmix", "seed=0")]
    assert without_seeds(preset, []) == [("mixer=vdn",), ("mixer=qmix",)], "seeds of a preset are replaced"
