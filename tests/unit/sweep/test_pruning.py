"""sweep.prune: which settings are stopped, from what is on disk, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run, run_config

from qllm_exp.config import schema
from qllm_exp.config.load import run_name
from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.table import comparison
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.pool import Pool, RunOutcome, Slot
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.sweep.pruning import HALVING, MEDIAN, Curve, Pruner, Rule, searches_of

NO_FUNCTION = json.dumps(None)  # as `make_run` names a run without a function
RATES = (0.001, 0.002, 0.003, 0.004)
STEPS = (0, 25, 50, 75, 100)
TRAIN = schema.TrainConfig(total_steps=100, evaluation=schema.EvaluationConfig(every=25))


def rule(name: str = MEDIAN, share: float = 0.25, least: int = 3, factor: int = 3) -> Rule:
    return Rule(name, share, least, factor)


def config_of(rate: float, seed: int = 0, mixer: str = "vdn") -> schema.RunConfig:
    return run_config(mixer, seed, train=replace(TRAIN, learning_rate=rate))


def prepared(folder: Path, config: schema.RunConfig, function: str | None = NO_FUNCTION) -> PreparedRun:
    return PreparedRun(config, RunDirectory(folder / run_name(config, function)), None, function)


def make_sweep(
    folder: Path, seeds: int = 1, by: Rule | None = None
) -> tuple[Sweep, dict[tuple[float, int], PreparedRun]]:
    """Return a sweep over RATES, and its runs, which have not started, by rate and seed."""
    by = by or rule()
    runs = {(rate, seed): prepared(folder, config_of(rate, seed)) for rate in RATES for seed in range(seeds)}
    names = [run.directory.path.name for run in runs.values()]
    searches = searches_of(list(runs.values()), by, {})
    return Sweep.create(folder / "s", names, {"name": "local"}, 0, "c", prune=asdict(by), searches=searches), runs


def play(run: PreparedRun, value: float, last: int, finish: bool = False) -> None:
    """Let a run be evaluated until step `last`; it returns `value` from the first step on."""
    steps = [step for step in STEPS if step <= last]
    path = run.directory.path
    if not path.exists():
        make_run(path.parent, run.config, value, steps=steps, returns=[0.0] + [value] * (len(steps) - 1))
    rows = [{"kind": "evaluation", "env_step": step, "return_mean": value if step else 0.0} for step in steps]
    run.directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.directory.result_path.unlink(missing_ok=True)
    if finish:
        run.directory.finish({"final_return": value, "absolute_return": value, "wall_s": 1.0, "env_steps": 100})


def curve(*values: float) -> Curve:
    return dict(zip(STEPS[1:], values, strict=False))


def test_median_rule_compares_the_best_so_far_with_the_median_of_running_means() -> None:
    others = [curve(0, 4, 8, 9), curve(1, 1, 1), curve(2, 4, 6, 8)]
    means = [np.mean([0, 4, 8]), np.mean([1, 1, 1]), np.mean([2, 4, 6])]  # until step 75, of which the median is 4
    assert np.median(means) == 4
    steps = STEPS[1:-1]
    assert rule().verdict(curve(3.9, 0, 2), others, [], steps) == (
        "at step 75 below the median of 3 other settings: best return 3.9 < 4"
    )
    assert rule().verdict(curve(4, 0, 0), others, [], steps) == "", "it was not below it once"
    assert rule(least=4).verdict(curve(3.9, 0, 2), others, [], steps) == "", "too few others"
    assert rule().verdict(curve(0, 0, 0), [*others[:2], curve(9, 9)], [], steps) == "", "one has not reached the step"
    assert "4 other" in rule().verdict(curve(0, 0, 0), others, [curve(9)], steps), (
        "a pruned one counts for what it reached"
    )
    assert rule().verdict(curve(), others, [], steps) == ""


def test_halving_keeps_the_best_third_of_those_that_have_reached_the_rung() -> None:
    by = rule(HALVING)
    values = [1.0, 2, 3, 4, 5, 6]
    kept = []
    for value in values:
        others = [{25: other} for other in values if other != value]
        if not by.verdict({25: value}, others, [], [25, 75]):
            kept.append(value)
    assert kept == [5, 6]
    assert by.verdict({25: 4.0}, [{25: other} for other in (1.0, 2, 5)], [], [25, 75]) == (
        "at step 25 not the best of 4 settings: return 4 < 5"
    )
    assert by.verdict({25: 0.0, 75: 7.0}, [{25: 9.0}] * 9, [], [25, 75]) == "", "the first at its rung continues"
    assert by.verdict({25: 1.0}, [{25: 1.0}] * 5, [], [25, 75]) == "", "equal settings are not told apart"


def test_rungs_are_at_the_first_common_steps_from_powers_of_the_factor_on() -> None:
    by = rule(HALVING, share=0.1)
    assert by.steps([(50, 1000)]) == list(range(100, 1000, 50))
    assert by.rungs(by.steps([(50, 1000)]), 1000) == [100, 300, 900]
    assert by.rungs(by.steps([(400, 1000)]), 1000) == [400], "the second would be the end"
    assert by.steps([(20, 100), (30, 200)]) == [60], "common steps before the end of the shortest"


@pytest.mark.parametrize("name", [MEDIAN, HALVING])
def test_a_setting_that_is_worse_stops_with_all_its_runs_and_once(tmp_path: Path, name: str) -> None:
    sweep, runs = make_sweep(tmp_path, seeds=2, by=rule(name, factor=2))
    for rate in RATES[:3]:
        play(runs[rate, 0], 10 * rate, 75)
    active = [runs[rate, 0].directory for rate in RATES]
    pruner = Pruner(sweep)
    pruner.update(active)
    assert not any(run.directory.pruned() for run in runs.values()), "three settings: too few"
    play(runs[RATES[3], 0], 0.0, 50)
    pruner.update(active)
    reasons = {key: run.directory.pruned() for key, run in runs.items() if run.directory.pruned()}
    if name == MEDIAN:
        assert set(reasons) == {(RATES[3], 0), (RATES[3], 1)}, "its second seed does not start"
        assert reasons[RATES[3], 0].startswith("at step 50 below the median of 3 other settings")
    else:
        assert set(reasons) == {(rate, seed) for rate in (RATES[0], RATES[3]) for seed in (0, 1)}
    states = {state_of(runs[key].directory, Queue({})).state for key in reasons}
    assert states == {"pruned"}
    play(runs[RATES[1], 0], 99.0, 100)
    Pruner(sweep).update(active)
    assert {key: run.directory.pruned() for key, run in runs.items() if key in reasons} == reasons, "decided once"


def test_a_process_that_was_killed_while_it_decided_is_completed_by_the_next(tmp_path: Path) -> None:
    sweep, runs = make_sweep(tmp_path, seeds=3)
    play(runs[RATES[0], 0], 1.0, 100, finish=True)
    runs[RATES[0], 1].directory.prune("at step 50 because")
    Pruner(sweep)
    assert runs[RATES[0], 2].directory.pruned() == "at step 50 because"
    assert not runs[RATES[0], 0].directory.pruned(), "a finished run stays finished"
    assert not runs[RATES[1], 0].directory.pruned()


def test_a_run_that_was_resumed_is_not_pruned_again(tmp_path: Path) -> None:
    sweep, runs = make_sweep(tmp_path)
    for rate, value in zip(RATES, (0.0, 2, 2, 2), strict=True):
        play(runs[rate, 0], value, 50)
    active = [run.directory for run in runs.values()]
    pruner = Pruner(sweep)
    pruner.update(active)
    worst = runs[RATES[0], 0].directory
    assert worst.pruned() and not runs[RATES[1], 0].directory.pruned()
    worst.withdraw_stop_request()
    assert not worst.stop_request.exists() and worst.was_overruled()
    pruner.update(active)
    Pruner(sweep).update(active)
    assert not worst.pruned()


def test_a_diverged_return_is_the_worst(tmp_path: Path) -> None:
    sweep, runs = make_sweep(tmp_path)
    for rate in RATES:
        play(runs[rate, 0], 0.0 if rate == RATES[0] else 1.0, 50)
    run = runs[RATES[0], 0].directory
    run.metrics.write_text(run.metrics.read_text().replace('"return_mean": 0.0', '"return_mean": null'))
    Pruner(sweep).update([run])
    assert "best return -inf < 1" in run.pruned()


def test_a_search_is_the_settings_of_a_method_on_a_task(tmp_path: Path) -> None:
    runs = [
        prepared(tmp_path, config_of(rate, seed, mixer))
        for mixer in ("vdn", "qmix")
        for rate in RATES
        for seed in (0, 1)
    ]
    searches = searches_of(runs, rule(), {})
    assert list(searches) == ["vdn on lbf/8x8-2p-2f-coop-2s", "qmix on lbf/8x8-2p-2f-coop-2s"]
    for search in searches.values():
        assert [len(names) for names in search["settings"].values()] == [2] * 4 and search["grids"] == [(25, 100)]
    more = searches_of([prepared(tmp_path, config_of(0.005))], rule(), json.loads(json.dumps(searches)))
    assert len(more["vdn on lbf/8x8-2p-2f-coop-2s"]["settings"]) == 5, "a further setting joins those of the record"


def test_returns_under_other_rules_of_an_environment_are_not_compared(tmp_path: Path) -> None:
    def run(rate: float, penalty: float) -> PreparedRun:
        train = replace(TRAIN, learning_rate=rate)
        return prepared(tmp_path, run_config("vdn", 0, "10x10-8h-8p", "pursuit", {"penalty": penalty}, train=train))

    searches = searches_of([run(rate, penalty) for rate in RATES for penalty in (-0.5, -1.5)], rule(), {})
    assert {name: len(search["settings"]) for name, search in searches.items()} == {
        f"vdn on pursuit/10x10-8h-8p env.penalty={penalty}": 4 for penalty in (-0.5, -1.5)
    }


def test_samples_of_a_procedure_are_repetitions(tmp_path: Path) -> None:
    def run(sample: int, rounds: int, llm: str) -> PreparedRun:
        procedure = schema.GenerationConfig(sample=sample, rounds=rounds)
        config = replace(config_of(0.001, mixer="tfcaf"), tfcaf=procedure, llm=schema.LlmConfig(llm))
        return prepared(tmp_path, config, f"{llm} {sample} {rounds}")

    written = [run(sample, rounds, "openai") for rounds in (1, 2) for sample in (0, 1, 2)]
    (search,) = searches_of(written, rule(least=1), {}).values()
    assert [len(names) for names in search["settings"].values()] == [3, 3]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    methods = [prepared(tmp_path, config_of(0.001, seed, mixer)) for mixer in ("vdn", "qmix") for seed in (0, 1)]
    with pytest.raises(UserError, match=r"never a method. vdn on lbf/.* has 1 setting: nothing can be stopped"):
        searches_of(methods, rule(), {})
    runs = [prepared(tmp_path, config_of(rate)) for rate in RATES]
    with pytest.raises(
        UserError, match=r"have none in common from sweep.pruning.share=0.8 .* evaluated every 25 of 100 steps"
    ):
        searches_of(runs, rule(share=0.8), {})
    other = replace(TRAIN, evaluation=schema.EvaluationConfig(every=40))
    mixed = [*runs, prepared(tmp_path, run_config("vdn", train=other))]
    with pytest.raises(UserError, match=r"evaluated every 25 of 100, every 40 of 100 steps"):
        searches_of(mixed, rule(), {})


def test_a_sweep_is_not_continued_with_another_rule(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    for other in (None, asdict(rule(HALVING)), asdict(rule(least=2))):
        with pytest.raises(UserError, match=r"was begun with sweep.prune=median .*type: qllm-exp retry"):
            Sweep.create(tmp_path / "s", ["a"], {}, 0, "c", prune=other)


def test_a_pool_starts_no_pruned_run_and_asks_for_decisions_while_runs_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RunDirectory(tmp_path / "first"), RunDirectory(tmp_path / "second")
    polls: list[list[str]] = []

    class Worker:
        lost = False

        def poll(self) -> int | None:
            return 3 if first.pruned() else None

    def prune(active: Sequence[RunDirectory]) -> None:
        polls.append([directory.path.name for directory in active])
        first.prune("at step 5 because")
        second.prune("at step 5 because")

    class Observer:
        def show(self, active: object) -> None: ...

        def run_ended(self, outcome: RunOutcome) -> None: ...

    created: list[RunDirectory] = []
    monkeypatch.setattr("qllm_exp.sweep.pool.PRUNE_S", 0.0)
    monkeypatch.setattr(Pool, "_start_worker", lambda self, directory, slot: Worker())
    pool = Pool([first, second], [Slot()], Observer(), created.append, prune=prune)
    outcomes = pool.run()
    assert polls[0] == ["first"] and created == [first, second], (
        "a run that is pruned before it starts has its configuration"
    )
    assert [(outcome.error, outcome.failed) for outcome in outcomes] == [("pruned: at step 5 because", False)] * 2


def test_tables_name_pruned_runs_and_settings_that_were_pruned_halfway(tmp_path: Path) -> None:
    sweep, runs = make_sweep(tmp_path, seeds=2)
    ends: Mapping[tuple[float, int], bool] = {(RATES[0], 1): False, (RATES[1], 0): False, (RATES[1], 1): False}
    for key, run in runs.items():
        play(run, 1.0, 50 if key in ends else 100, finish=key not in ends)
        if key in ends:
            run.directory.prune("at step 50 because")
    sheet, _ = comparison(collect([sweep.path]))
    notes = "\n".join(sheet.notes)
    assert "Missing: vdn on lbf/8x8-2p-2f-coop-2s: 3 pruned (s0, s1, s1)." in notes
    assert "Pruned: 3 runs stopped before the end" in notes and "no comparison of methods" in notes
    assert "some runs had finished before: vdn learning_rate=0.001 on lbf/8x8-2p-2f-coop-2s (1 run)." in notes
