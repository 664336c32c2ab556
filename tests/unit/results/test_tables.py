"""Tables: scores, bold, footnotes on missing runs, ablations, costs, and all output formats."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.keys import methods, sort_key
from qllm_exp.results.statistics.aggregate import Estimate, bootstrap_mean
from qllm_exp.results.tables.costs import cost_sheet
from qllm_exp.results.tables.formats import as_csv, html, in_latex, latex
from qllm_exp.results.tables.pivot import Cell, difference, statistic
from qllm_exp.results.tables.sheet import Sheet, cell_text, markdown
from qllm_exp.results.tables.table import ablation, comparison

TASK, OTHER = "8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"


def five(folder: Path, mixer: str, middle: float, task: str = TASK, seeds: int = 5, spread: float = 0.01) -> None:
    for seed in range(seeds):
        make_run(folder, run_config(mixer, seed, task), middle + spread * (seed - 2), absolute=middle + 1)


def cell(sheet: Sheet, row: int, column: str) -> Cell:
    value = sheet.rows[row][1][list(sheet.columns).index(column)]
    assert isinstance(value, Cell)
    return value


def bold(sheet: Sheet, row: int = 0) -> set[str]:
    cells = zip(sheet.columns, sheet.rows[row][1], strict=True)
    return {column for column, value in cells if isinstance(value, Cell) and value.bold}


def notes(sheet: Sheet) -> str:
    return "\n".join(sheet.notes)


def battles(folder: Path, mixer: str, rates: list[float], task: str = "3m", final: float = 1.0) -> None:
    """Runs of smax, one per win rate."""
    for seed, rate in enumerate(rates):
        make_run(folder, run_config(mixer, seed, task, env="smax"), final, metrics={"win": [0, 0, 0, 0, rate]})


# The comparison


def test_a_win_rate_is_that_of_the_last_evaluation(tmp_path: Path) -> None:
    battles(tmp_path, "qmix", [0.2, 0.4])
    battles(tmp_path, "vdn", [0.8, 0.9])
    sheet, cells = comparison(collect([tmp_path]), metric="win_rate")
    assert "Share of episodes won" in sheet.title and cells.normalisation is None
    assert cell(sheet, 0, "qmix").estimate.value == pytest.approx(0.3)
    assert cell(sheet, 0, "vdn").estimate.value == pytest.approx(0.85)


def test_win_rates_of_several_tasks_are_pooled_as_they_are(tmp_path: Path) -> None:
    battles(tmp_path, "qmix", [0.2, 0.4])
    battles(tmp_path, "qmix", [0.6, 0.8], "2s3z")
    sheet, _ = comparison(collect([tmp_path]), rows=["env"], metric="win_rate")
    assert cell(sheet, 0, "qmix").estimate.value == pytest.approx(0.5)
    assert "normalised" not in sheet.title + notes(sheet) and "tasks that all of them have" in notes(sheet)


def test_a_table_of_what_the_environment_reports_for_each_episode(tmp_path: Path) -> None:
    for seed, score in enumerate([-0.25, 0.75]):
        run = run_config("qmix", seed, "academy_corner", env="grf")
        make_run(tmp_path, run, 1.0, metrics={"score": [0, 0, 0, 0, score], "win": [0, 0, 0, 0, 0.5]})
    sheet, _ = comparison(collect([tmp_path]), metric="score")
    assert sheet.title.startswith("Score of the last evaluation, mean ")
    assert cell(sheet, 0, "qmix").estimate.value == pytest.approx(0.25)
    with pytest.raises(UserError, match=r"--metric='goals' is unknown\. Allowed: final, absolute, win_rate, score"):
        comparison(collect([tmp_path]), metric="goals")
    five(tmp_path, "qmix", 0.7)
    with pytest.raises(UserError, match=r"lbf/8x8-2p-2f-coop-2s reports no score \(score_mean in .*--only env=NAME"):
        comparison(collect([tmp_path]), metric="score")


def test_the_highest_is_not_marked_as_the_best_of_what_an_environment_reports(tmp_path: Path) -> None:
    for mixer, length in (("qmix", 20.0), ("vdn", 60.0)):
        for seed in range(5):
            run = run_config(mixer, seed, "3m", env="smax")
            make_run(tmp_path, run, length + seed, metrics={"length": [0, 0, 0, 0, length + seed]})
    assert bold(comparison(collect([tmp_path]))[0]) == {"vdn"}
    assert bold(comparison(collect([tmp_path]), metric="length")[0]) == set()
    pooled, _ = comparison(collect([tmp_path]), rows=[], metric="length")
    assert "return" not in pooled.title


def test_a_task_without_wins_has_no_win_rate(tmp_path: Path) -> None:
    battles(tmp_path, "qmix", [0.2, 0.4])
    five(tmp_path, "qmix", 0.7)
    with pytest.raises(
        UserError, match=r"lbf/8x8-2p-2f-coop-2s reports no wins.*--only env=NAME.*, or use --metric final"
    ):
        comparison(collect([tmp_path]), metric="win_rate")


def test_a_cell_is_the_mean_over_seeds_with_its_interval(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    sheet, _ = comparison(collect([tmp_path]))
    value = cell(sheet, 0, "qmix")
    scores = np.array([0.68, 0.69, 0.7, 0.71, 0.72])
    low, high = bootstrap_mean(scores)
    assert value.estimate.value == pytest.approx(0.7) and value.estimate.runs == 5
    assert (value.estimate.low, value.estimate.high) == (pytest.approx(low, abs=0.002), pytest.approx(high, abs=0.002))
    assert re.search(r"\| lbf/8x8-2p-2f-coop-2s \| 0\.700 \[0\.688, 0\.712\] \(n=5\) \|", markdown([sheet]))
    assert cell(comparison(collect([tmp_path]), metric="absolute")[0], 0, "qmix").estimate.value == pytest.approx(1.7)


def test_the_absolute_metric_is_said_to_depend_on_the_noise_of_evaluations(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    (note,) = (line for line in comparison(collect([tmp_path]), metric="absolute")[0].notes if "noise" in line)
    assert note.endswith("depends on its noise, so the value may be below that of the last evaluation.")
    for run in tmp_path.iterdir():
        last = {"kind": "evaluation", "env_step": 300_000, "return_mean": 0.7, "return_std": 0.4, "episodes": 100}
        absolute = {"kind": "absolute", "return_mean": 0.7, "return_std": 0.4, "episodes": 1600}
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in (last, absolute))
    (note,) = (line for line in comparison(collect([tmp_path]), metric="absolute")[0].notes if "noise" in line)
    assert (
        "its noise (standard error 0.04 at 100 episodes), so the value (standard error 0.01 at 1600 episodes)" in note
    )
    assert "noise" not in notes(comparison(collect([tmp_path]))[0])


def test_runs_with_masked_actions_are_said_to_be_easier_than_published(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    assert "mask_ineffective" not in notes(comparison(collect([tmp_path]))[0])
    make_run(tmp_path, run_config("vdn", env_options={"mask_ineffective": True}), 0.8)
    sheet, _ = comparison(collect([tmp_path]))
    assert "Runs with env.mask_ineffective=true" in notes(sheet) and "easier than as published" in notes(sheet)
    assert sheet.columns == ["qmix mask_ineffective=False", "vdn mask_ineffective=True"]


def test_runs_by_the_rules_of_pettingzoo_are_named_and_not_to_be_compared_with_others(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix", env="mpe", task="simple_spread"), -400.0)
    assert "env.rules" not in notes(comparison(collect([tmp_path]))[0])
    options = {"rules": "pettingzoo"}
    make_run(tmp_path, run_config("qmix", env="mpe", task="simple_spread", env_options=options), -100.0)
    sheet, _ = comparison(collect([tmp_path]))
    assert sheet.columns == ["qmix rules=pettingzoo", "qmix rules=vmas"]
    assert "Runs with env.rules=pettingzoo" in notes(sheet) and "cannot be compared" in notes(sheet)


def test_rows_are_tasks_and_columns_methods_in_a_fixed_order(tmp_path: Path) -> None:
    for mixer in ("none", "qmix", "tfcaf", "vdn"):
        make_run(tmp_path, run_config(mixer), 1.0, program=1 if mixer == "tfcaf" else None)
    make_run(tmp_path, run_config("vdn", 0, OTHER), 1.0)
    sheet, _ = comparison(collect([tmp_path]))
    assert sheet.columns == ["tfcaf", "qmix", "vdn", "none"]
    assert [row for row, _ in sheet.rows] == [("lbf", TASK), ("lbf", OTHER)]
    assert [value is None for value in sheet.rows[1][1]] == [True, True, False, True]
    assert "| lbf/10x10-3p-3f-2s    | -" in markdown([sheet])


def test_any_key_makes_rows_and_columns(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        for seed in range(2):
            make_run(
                tmp_path, run_config("vdn", seed, train=schema.TrainConfig(learning_rate=rate)), rate * 1000 + seed
            )
    runs = collect([tmp_path])
    sheet, _ = comparison(runs, rows=["train.learning_rate", "mixer"], columns=["seed"])
    assert list(sheet.labels) == ["train.learning_rate", "mixer"] and sheet.columns == ["seed=0", "seed=1"]
    assert [row for row, _ in sheet.rows] == [(1e-4, "vdn"), (1e-3, "vdn")]
    assert cell(sheet, 0, "seed=1").estimate.value == pytest.approx(1.1)


def test_a_cell_does_not_mix_methods(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        make_run(tmp_path, run_config("vdn", train=schema.TrainConfig(learning_rate=rate)), 1.0)
    with pytest.raises(UserError, match=r"mixer=vdn differ in train\.learning_rate and would be pooled"):
        comparison(collect([tmp_path]), columns=["mixer"])
    assert comparison(collect([tmp_path]))[0].columns == ["vdn learning_rate=0.0001", "vdn learning_rate=0.001"]


def test_over_several_tasks_scores_are_normalised_and_on_common_tasks(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "vdn", 0.5)
    five(tmp_path, "vdn", 0.1, OTHER)
    for seed in range(2):
        make_run(tmp_path, run_config("qmix", seed, "climbing", "matrix"), 1.0)  # not a task of vdn's
    sheet, cells = comparison(collect([tmp_path]), rows=["env"], columns=["mixer"])
    assert cells.normalisation is not None and "normalised" in sheet.title
    assert cell(sheet, 0, "vdn").estimate.value == pytest.approx(0.5)  # without the other task
    assert "Left out: vdn on lbf/10x10-3p-3f-2s (5 runs)." in notes(sheet) and "0 is a return of 0" in notes(sheet)
    both, _ = comparison(collect([tmp_path]), rows=["mixer"], columns=["env"])
    assert cell(both, 1, "lbf").estimate.value == pytest.approx(0.5)


def test_without_rows_all_tasks_are_one(tmp_path: Path) -> None:
    five(tmp_path, "vdn", 0.5)
    five(tmp_path, "vdn", 0.1, OTHER)
    sheet, _ = comparison(collect([tmp_path]), rows=[], columns=["mixer"])
    assert cell(sheet, 0, "vdn").estimate.value == pytest.approx(0.3) and "| 0.300 [" in markdown([sheet])


@pytest.mark.parametrize(("stat", "value"), [("mean", 0.3), ("median", 0.2), ("iqm", 0.2)])
def test_statistics_are_over_the_seeds(tmp_path: Path, stat: str, value: float) -> None:
    for seed, score in enumerate((0.0, 0.2, 0.2, 0.2, 0.9)):
        make_run(tmp_path, run_config("vdn", seed), score)
    estimate = cell(comparison(collect([tmp_path]), stat=stat)[0], 0, "vdn").estimate
    assert estimate.value == pytest.approx(value) and estimate.low <= value <= estimate.high


def test_numbers_within_names_are_in_the_order_of_their_size() -> None:
    names = ["vdn rate=0.001", "tfcaf rounds=10", "tfcaf rounds=2", "vdn rate=1e-05", "tfcaf", "none", "a1"]
    ordered = sorted(names, key=sort_key)
    assert ordered == ["tfcaf", "tfcaf rounds=2", "tfcaf rounds=10", "vdn rate=1e-05", "vdn rate=0.001", "none", "a1"]


# Footnotes on resumed runs


def test_a_run_that_was_resumed_with_other_software_is_marked(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    runs = {seed: next(tmp_path.glob(f"*_s{seed}_*")) for seed in range(3)}
    old, new = {"torch": "2.6.0", "kernel": "native 0123456789"}, {"torch": "2.7.0", "kernel": "torch"}
    parts = [{"env_step": 0, **old}, {"env_step": 120_000, **new}, {"env_step": 150_000, **old}]
    (runs[0] / "versions.json").write_text(json.dumps({**old, "segments": parts}))
    (runs[1] / "versions.json").write_text(json.dumps({**new, "segments": parts[:2]}))
    (runs[2] / "versions.json").write_text(json.dumps(old))
    sheet, _ = comparison(collect([tmp_path]))
    (note,) = [note for note in sheet.notes if "Resumed" in note]
    assert note == (
        "Resumed with other software or hardware, which may change later numbers: qmix on lbf/8x8-2p-2f-coop-2s: "
        "torch 2.6.0 -> 2.7.0, kernel native 0123456789 -> torch (s0 from step 120,000, s1 from step 120,000); "
        "torch 2.7.0 -> 2.6.0, kernel torch -> native 0123456789 (s0 from step 150,000)."
    )
    for text in (markdown([sheet]), html([sheet]), latex([sheet])):
        assert "from step 120,000" in text
    assert not [note for note in comparison(collect([runs[2]]))[0].notes if "Resumed" in note]


# Bold


def test_bold_is_the_best_and_all_indistinguishable_values(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "vdn", 0.705)
    five(tmp_path, "none", 0.2)
    sheet, _ = comparison(collect([tmp_path]))
    assert bold(sheet) == {"qmix", "vdn"} and "Bold: the best" in notes(sheet)
    assert "**0.705** [" in markdown([sheet]) and "\\textbf{0.705}" in latex([sheet])
    assert "<strong>0.705</strong>" in html([sheet])
    assert bold(comparison(collect([tmp_path]), rows=["mixer"], columns=["task"])[0], 1) == {TASK}  # vdn, in its column


@pytest.mark.parametrize("middles", [(0.7, 0.705, 0.71), (0.7, 0.7, 0.7)])
def test_nothing_is_bold_if_all_are_indistinguishable(tmp_path: Path, middles: tuple[float, ...]) -> None:
    for mixer, middle in zip(("qmix", "vdn", "none"), middles, strict=True):
        five(tmp_path, mixer, middle)
    sheet, _ = comparison(collect([tmp_path]))
    assert bold(sheet) == set() and "Bold" not in notes(sheet)


def test_nothing_is_bold_where_a_method_has_one_seed(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "vdn", 0.1, seeds=1)
    assert bold(comparison(collect([tmp_path]))[0]) == set()


def test_methods_with_equal_seeds_are_distinguishable(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7, spread=0)
    five(tmp_path, "vdn", 0.6, spread=0)
    assert bold(comparison(collect([tmp_path]))[0]) == {"qmix"}


def test_rounding_errors_do_not_distinguish(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.9, spread=0, seeds=5)
    five(tmp_path, "vdn", 0.9, spread=0, seeds=13)
    sheet, _ = comparison(collect([tmp_path]))
    assert bold(sheet) == set() and "0.900 [0.900, 0.900] (n=13)" in markdown([sheet])


def test_no_zero_is_negative() -> None:
    assert cell_text(Cell(Estimate(-1e-5, -2e-4, 1e-5, 5))) == "0.000 [0.000, 0.000] (n=5)"


def test_the_difference_of_means_has_welchs_interval() -> None:
    from scipy.stats import ttest_ind

    x, y = np.array([1.0, 1.4, 0.9, 1.2]), np.array([0.5, 0.9, 0.2, 0.4, 0.6])
    ends = ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    result = difference([x], [y], "mean")
    assert (result.low, result.high) == (pytest.approx(ends.low), pytest.approx(ends.high))


@pytest.mark.parametrize("stat", ["median", "iqm"])
def test_the_difference_of_other_statistics_is_bootstrapped(stat: str) -> None:
    x, y = np.array([1.0, 1.4, 0.9, 1.2, 7.0]), np.array([0.5, 0.9, 0.2, 0.4, 0.6])
    random = np.random.default_rng(7)
    function = statistic(stat, 1)
    drawn = [float(function([random.choice(x, 5)]) - function([random.choice(y, 5)])) for _ in range(4000)]
    result = difference([x], [y], stat)
    assert result.value == pytest.approx(float(function([x]) - function([y])))
    assert (result.low, result.high) == (
        pytest.approx(np.quantile(drawn, 0.025), abs=0.1),
        pytest.approx(np.quantile(drawn, 0.975), rel=0.1),
    )


# Footnotes


def test_few_seeds_are_marked_with_a_footnote(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "vdn", 0.1, seeds=4)
    some, _ = comparison(collect([tmp_path]))
    assert "(n=4)†" in markdown([some]) and "(n=5)†" not in markdown([some])
    assert "† Fewer than 5 seeds: " in notes(some) and "(n=4)\\textsuperscript{\\dag}" in latex([some])
    every, _ = comparison(collect([tmp_path]), columns=["seed"], rows=["mixer"])
    assert "†" not in markdown([every]) and "Fewer than 5 seeds in every cell" in notes(every)


def test_missing_runs_are_counted_per_method(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    for seed, state in ((5, "failed"), (6, "failed"), (7, "interrupted")):
        make_unfinished_run(tmp_path, run_config("qmix", seed), state)
    make_unfinished_run(tmp_path, run_config("vdn", 0, OTHER), "failed")
    sheet, _ = comparison(collect([tmp_path]))
    assert "Missing: qmix on lbf/8x8-2p-2f-coop-2s: 2 failed (s5, s6), 1 interrupted (s7)." in sheet.notes
    assert "Missing: vdn on lbf/10x10-3p-3f-2s: 1 failed (s0)." in sheet.notes


def test_a_run_that_diverged_is_named_and_not_averaged_away(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "vdn", 0.2)
    path = make_run(tmp_path, run_config("vdn", 5), float("nan"))
    sheet, _ = comparison(collect([tmp_path]))
    assert np.isnan(cell(sheet, 0, "vdn").estimate.value) and not cell(sheet, 0, "vdn").bold
    assert "Not a finite number" in notes(sheet) and path.name in notes(comparison(collect([path]))[0])


# The ablation


def generation(**more: object) -> dict[str, object]:
    return {"tfcaf": schema.GenerationConfig(**more), "llm": OnlineConfig(name="openai", model="openai/x")}  # type: ignore[arg-type]


def test_an_ablation_compares_with_the_default(tmp_path: Path) -> None:
    for rounds, middle in ((1, 0.5), (3, 0.7), (10, 0.9)):
        for seed in range(5):
            make_run(
                tmp_path, run_config("tfcaf", seed, **generation(rounds=rounds)), middle + 0.01 * seed, program=rounds
            )
    make_run(tmp_path, run_config("qmix"), 1.0)
    sheet, _ = ablation(collect([tmp_path]), ["tfcaf.rounds"])
    assert [row[2] for row, _ in sheet.rows] == [1, 3, 10] and sheet.rows[1][1][1] == "default"
    lower, upper = cell(sheet, 0, "difference to default"), cell(sheet, 2, "difference to default")
    assert lower.estimate.value == pytest.approx(-0.2) and upper.estimate.value == pytest.approx(0.2)
    assert -0.25 < lower.estimate.low < -0.2 < lower.estimate.high < -0.15
    assert "Default: tfcaf.rounds=3 (from the configuration)." in sheet.notes
    assert "Left out: qmix (1 run), which has no tfcaf.rounds." in sheet.notes


def test_without_a_run_of_the_default_most_runs_decide(tmp_path: Path) -> None:
    for rate, seeds in ((1e-3, 2), (1e-4, 3)):
        for seed in range(seeds):
            make_run(tmp_path, run_config("vdn", seed, train=schema.TrainConfig(learning_rate=rate)), rate)
    sheet, _ = ablation(collect([tmp_path]), ["train.learning_rate"])
    reason = "the most common value; no run has the configured default, train.learning_rate=0.0005"
    assert f"Default: train.learning_rate=0.0001 ({reason})." in sheet.notes
    assert [cells[1] == "default" for _, cells in sheet.rows] == [True, False]


def gammas(
    folder: Path, env: str, task: str, mixer: str, middle: float, values: tuple[float, ...], **more: object
) -> None:
    for gamma in values:
        for seed in range(2):
            train = schema.TrainConfig(gamma=gamma, **more)  # type: ignore[arg-type]
            make_run(folder, run_config(mixer, seed, task, env, train=train), middle + gamma + 0.01 * seed)


def test_every_row_has_the_default_of_its_own_environment(tmp_path: Path) -> None:
    """In conf/train/preset/env/fair_grf.yaml gamma is 0.999, elsewhere 0.99."""
    gammas(tmp_path, "grf", "academy_3_vs_1_with_keeper", "qmix", 0, (0.9, 0.99, 0.999))
    for task in (TASK, OTHER):
        gammas(tmp_path, "lbf", task, "qmix", 5, (0.9, 0.99, 0.999))
    sheet, _ = ablation(collect([tmp_path]), ["train.gamma"])
    usual = {(row[0], row[2]) for row, cells in sheet.rows if cells[1] == "default"}
    assert usual == {("grf", 0.999), ("lbf", 0.99)}
    first = cell(sheet, 0, "difference to default")
    assert sheet.rows[0][0][0] == "grf" and first.estimate.value == pytest.approx(0.9 - 0.999)
    assert [note for note in sheet.notes if note.startswith("Default")] == [
        "Default for grf: train.gamma=0.999 (from the configuration).",
        "Default for lbf: train.gamma=0.99 (from the configuration).",
    ]


def test_every_row_has_the_default_of_its_own_mixer_and_preset(tmp_path: Path) -> None:
    """In conf/train/preset/mixer/paper_q_learning_tfcaf.yaml the learning rate is 0.001, for QMIX that of paper.yaml."""
    for mixer in ("tfcaf", "qmix"):
        for rate in (3e-4, 1e-3):
            train = schema.TrainConfig(name="paper", learning_rate=rate)
            make_run(
                tmp_path,
                run_config(mixer, 0, "simple_spread", "mpe", train=train),
                rate,
                program=1 if mixer == "tfcaf" else None,
            )
    sheet, _ = ablation(collect([tmp_path]), ["train.learning_rate"])
    assert [row[2:] for row, cells in sheet.rows if cells[1] == "default"] == [("tfcaf", 1e-3), ("qmix", 3e-4)]
    assert "Default for qmix: train.learning_rate=0.0003 (from the configuration)." in sheet.notes


def test_a_row_in_which_the_default_was_not_run_has_another(tmp_path: Path) -> None:
    gammas(tmp_path, "lbf", TASK, "vdn", 0, (0.9, 0.99))
    gammas(tmp_path, "lbf", OTHER, "vdn", 0, (0.8, 0.9))
    gammas(tmp_path, "lbf", "5x5-2p-1f", "vdn", 0, (0.9, 0.99))
    sheet, _ = ablation(collect([tmp_path]), ["train.gamma"])
    assert [row[1:] for row, cells in sheet.rows if cells[1] == "default"] == [
        *(("5x5-2p-1f", 0.99), (TASK, 0.99), (OTHER, 0.8))
    ]
    assert f"Default for 5x5-2p-1f, {TASK}: train.gamma=0.99 (from the configuration)." in sheet.notes
    lacking = "the most common value; no run has the configured default, train.gamma=0.99"
    assert f"Default for {OTHER}: train.gamma=0.8 ({lacking})." in sheet.notes


def test_of_several_axes_the_combination_is_the_default(tmp_path: Path) -> None:
    """Where each default was run but not both together, the combination that most runs have is compared with."""
    for task, combinations in ((TASK, [(0.99, 64), (0.9, 64)]), (OTHER, [(0.99, 32), (0.9, 64), (0.9, 64)])):
        for seed, (gamma, hidden) in enumerate(combinations):
            train = schema.TrainConfig(gamma=gamma, hidden=hidden)
            make_run(tmp_path, run_config("vdn", seed, task, train=train), gamma)
    sheet, _ = ablation(collect([tmp_path]), ["train.gamma", "train.hidden"])
    assert [row[1:] for row, cells in sheet.rows if cells[1] == "default"] == [(TASK, 0.99, 64), (OTHER, 0.9, 64)]
    assert f"Default for {TASK}: train.gamma=0.99 train.hidden=64 (from the configuration)." in sheet.notes
    assert all(isinstance(value, Cell) or value == "default" for _, cells in sheet.rows for value in cells[1:])


def test_the_default_of_a_users_own_choice_is_the_most_common_value(tmp_path: Path) -> None:
    for value, seeds in ((1, 2), (2, 3)):
        for seed in range(seeds):
            path = make_run(tmp_path, run_config("qmix", seed), 0.1 * seed)
            text = (path / "config.yaml").read_text().replace("name: qmix", f"name: elsewhere.mine\n  rate: {value}")
            (path / "config.yaml").write_text(text)
            path.rename(path.with_name(f"{path.name}_{value}"))
    sheet, _ = ablation(collect([tmp_path]), ["mixer.rate"])
    assert "Default: mixer.rate=2 (the most common value)." in sheet.notes


def test_a_group_is_an_axis_too(tmp_path: Path) -> None:
    for mixer in ("vdn", "tfcaf"):
        make_run(tmp_path, run_config(mixer), 0.5, program=1 if mixer == "tfcaf" else None)
    sheet, _ = ablation(collect([tmp_path]), ["mixer"])
    assert [row for row, _ in sheet.rows] == [("lbf", TASK, "tfcaf"), ("lbf", TASK, "vdn")]
    assert sheet.rows[0][1][1] == "default"


def test_several_axes_have_a_row_for_each_combination_that_was_run(tmp_path: Path) -> None:
    for gamma, hidden in ((0.99, 64), (0.9, 64), (0.99, 32)):
        for mixer in ("qmix", "vdn"):
            for seed in range(2):
                train = schema.TrainConfig(gamma=gamma, hidden=hidden)
                make_run(tmp_path, run_config(mixer, seed, train=train), gamma + hidden + seed * 0.1)
    assert methods(collect([tmp_path]).finished)[0] == "qmix gamma=0.9 hidden=64"
    sheet, _ = ablation(collect([tmp_path]), ["train.gamma", "train.hidden"])
    assert list(sheet.labels) == ["env", "task", "mixer", "train.gamma", "train.hidden"]
    assert [row[2:] for row, _ in sheet.rows[:3]] == [("qmix", 0.9, 64), ("qmix", 0.99, 32), ("qmix", 0.99, 64)]
    assert cell(sheet, 1, "difference to default").estimate.value == pytest.approx(-32)


def test_functions_and_not_their_seeds_are_counted(tmp_path: Path) -> None:
    """Seeds that share a function are not independent samples of what a language model writes."""
    for rounds in (1, 3):
        for sample, middle in enumerate((0.2, 0.5, 0.9)):
            for seed in range(4):
                run = run_config("tfcaf", seed, **generation(rounds=rounds, sample=sample))
                make_run(tmp_path, run, middle + 0.01 * seed, program=[rounds, sample])
    sheet, _ = ablation(collect([tmp_path]), ["tfcaf.rounds"])
    value = cell(sheet, 0, "return")
    assert value.estimate.runs == 3 and sorted(value.scores[0]) == pytest.approx([0.215, 0.515, 0.915])
    assert "(n=3 functions)" in markdown([sheet]) and "each function counts once" in notes(sheet)


# Costs


def test_costs_of_runs(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, run_config("tfcaf", seed), 0.5, program=1)
        make_run(tmp_path, run_config("qmix", seed), 0.5)
    sheet, cells = comparison(collect([tmp_path]))
    costs = cost_sheet(cells, sheet, ["parameters", "time", "cost"])
    assert [list(row) for row, _ in costs.rows] == [["lbf", TASK, "tfcaf"], ["lbf", TASK, "qmix"]]
    assert costs.rows[0][1] == ["26310", "0", "100.0", "2000", "7", "0.2500"]  # one function, paid for once
    assert costs.rows[1][1] == ["27310", "1000", "100.0", "2000", "-", "-"]
    with pytest.raises(UserError, match=r"'tim' is unknown. Did you mean 'time'\?"):
        cost_sheet(cells, sheet, ["tim"])


def test_costs_of_searches_count_each_function_once_and_a_function_without_a_search_as_nothing(tmp_path: Path) -> None:
    for seed in range(2):
        searched = make_run(tmp_path, run_config("tfcaf", seed), 0.5, program=1)
        stored = json.loads((searched / "tfcaf.json").read_text())
        stored["cost"] |= {"trainings": 20, "env_steps": 12_000_000, "core_hours": 1.25}
        (searched / "tfcaf.json").write_text(json.dumps(stored))
        make_run(tmp_path, run_config("tfcaf", seed, OTHER), 0.5, program=2)
        make_run(tmp_path, run_config("qmix", seed), 0.5)
    sheet, cells = comparison(collect([tmp_path]))
    rows = {tuple(row[1:]): cells for row, cells in cost_sheet(cells, sheet, ["search"]).rows}
    assert rows[TASK, "tfcaf"][:2] == ["12,000,000", "1.25"] and rows[OTHER, "tfcaf"][:2] == ["0", "0.00"]
    assert rows[TASK, "qmix"][:2] == ["-", "-"] and rows[TASK, "qmix"][2] == "400,000"


def test_an_unknown_price_is_not_zero(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("tfcaf"), 0.5, program=1, usd=None)
    sheet, cells = comparison(collect([tmp_path]))
    assert cost_sheet(cells, sheet, ["cost"]).rows[0][1] == ["7", "?"]


def slow_median(values: list[float]) -> float:
    """Of a sorted list the middle, or halfway between the two of the middle; what was never reached is later than all."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def slow_steps_to(runs: list[list[float]], steps: tuple[int, ...], target: float) -> tuple[float, float, float, int]:
    """Median, ends of its bootstrap interval and number of runs that reached a return, by going through all of it."""
    first = []
    for returns in runs:
        reached = [step for step, value in zip(steps, returns, strict=True) if value >= target]
        first.append(float(reached[0]) if reached else float("inf"))
    random = np.random.default_rng(0)
    medians = []
    for picks in random.integers(len(first), size=(2000, len(first))):
        medians.append(slow_median([first[at] for at in picks]))
    medians.sort()
    low, high = medians[int(0.025 * 1999)], medians[math.ceil(0.975 * 1999)]
    return slow_median(first), low, high, sum(step < float("inf") for step in first)


@pytest.mark.parametrize("target", [0.05, 0.5, 0.9, 1.5])
def test_steps_to_a_return_are_a_median_in_which_no_run_is_dropped(tmp_path: Path, target: float) -> None:
    random = np.random.default_rng(3)
    steps = tuple(range(0, 1001, 100))
    curves = [list(np.minimum.accumulate(random.normal(0.5, 0.4, 11))[::-1]) for _ in range(6)]
    for seed, returns in enumerate(curves):
        make_run(tmp_path, run_config("qmix", seed), 1.0, returns=returns, steps=steps)
    sheet, cells = comparison(collect([tmp_path]))
    costs = cost_sheet(cells, sheet, [f"steps-to={target}"])
    middle, low, high, reached = slow_steps_to(curves, steps, target)
    shown = [f"{step:.0f}" if step < float("inf") else ">1000" for step in (middle, low, high)]
    assert costs.columns == [f"steps to {target}"]
    assert costs.rows[0][1] == [f"{shown[0]} [{shown[1]}, {shown[2]}] ({reached} of 6 reached it)"]
    assert any("counts as later than all evaluated steps" in note for note in costs.notes)


def test_steps_to_a_return_are_those_of_functions(tmp_path: Path) -> None:
    """Of a function they are those of the mean over its seeds: one that gets there in half of its seeds is half way."""
    steps = (0, 10, 20)
    for sample, finals in enumerate(((1.0, 0.0), (1.0, 1.0), (0.0, 0.0))):
        for seed, final in enumerate(finals):
            run = run_config("tfcaf", seed, **generation(sample=sample))
            make_run(tmp_path, run, final, program=sample, steps=steps)
    sheet, cells = comparison(collect([tmp_path]))
    (row,) = cost_sheet(cells, sheet, ["steps-to=0.5"]).rows
    assert row[1] == ["20 [10, >20] (2 of 3 functions reached it)"]


def test_evaluations_that_not_all_runs_have_are_left_out_of_steps_to(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("vdn", 0), 0.5, steps=(0, 10, 20, 30))
    make_run(tmp_path, run_config("vdn", 1), 0.5, steps=(0, 10, 30))
    sheet, cells = comparison(collect([tmp_path]))
    costs = cost_sheet(cells, sheet, ["steps-to=0.3", "steps-to=0.1"])
    assert costs.columns == ["steps to 0.3", "steps to 0.1"] and costs.rows[0][1][0].startswith("30 ")  # type: ignore[union-attr]
    assert f"lbf {TASK} vdn: evaluations at the 3 of 4 steps that all 2 runs share." in costs.notes
    assert len([note for note in costs.notes if note.startswith("Steps to")]) == 1


def test_steps_to_a_return_need_one_task_and_a_number(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.7)
    five(tmp_path, "qmix", 0.5, OTHER)
    sheet, cells = comparison(collect([tmp_path]), rows=["mixer"], columns=["env"])
    with pytest.raises(UserError, match=r"--columns steps-to=0\.5: returns of several tasks.*--rows env,task"):
        cost_sheet(cells, sheet, ["steps-to=0.5"])
    for wrong in ("steps-to=", "steps-to=high", "steps-to=inf", "steps-to=RETURN"):
        with pytest.raises(UserError, match="the return must be a number"):
            cost_sheet(cells, sheet, [wrong])
    with pytest.raises(UserError, match="Did you mean 'steps-to=RETURN'"):
        cost_sheet(cells, sheet, ["steps-to"])


# Formats


def test_csv_reads_back_to_the_same_numbers(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 1 / 3)
    five(tmp_path, "vdn", 0.1, OTHER, seeds=1)
    sheet, _ = comparison(collect([tmp_path]))
    second, first = csv.DictReader(io.StringIO(as_csv([sheet])))
    assert (first["env"], first["task"], first["method"], first["value"]) == ("lbf", OTHER, "vdn", repr(0.1 - 0.02))
    assert (first["low"], first["n"], first["few"], first["metric"]) == ("", "1", "1", "final")
    estimate = cell(sheet, 0, "qmix").estimate
    assert [float(second[head]) for head in ("value", "low", "high", "n")] == [
        estimate.value,
        estimate.low,
        estimate.high,
        5,
    ]


def hostile() -> Sheet:
    cells = [Cell(Estimate(-0.5, -0.75, -0.25, 5), bold=True), None, "50 % <b>"]
    title = "Return & <more> of 95 %"
    return Sheet(
        title,
        "method",
        ["env", "task", "x_y"],
        ["a_b|c", "d&e", "f<g>"],
        [(("lbf", "a#1", "[1]"), cells)],
        notes=["~^\\{}"],
    )


def test_latex_is_a_whole_table_with_nothing_unescaped() -> None:
    written = latex([hostile()])
    for environment in ("table", "tabular"):
        assert written.count(f"\\begin{{{environment}}}") == written.count(f"\\end{{{environment}}}") == 1
    assert [written.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    body = written.partition("\\toprule")[2].partition("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [4, 4] and "{llrrr}" in written
    assert r"\textbf{$-$0.500} {[}$-$0.750, $-$0.250{]} (n=5)" in written and r"a\_b\textbar{}c & d\&e" in written
    assert r"\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}" in written
    assert not re.search(r"(?<!\\)[#_]", written) and not re.search(r"(?<!\\)%(?! needs|\n)", written)
    assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(r"\}")
    assert in_latex("[1]") == "{[}1{]}"  # a row that begins with a bracket would give it to the line before


def test_markdown_keeps_its_columns() -> None:
    lines = markdown([hostile()]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6} and len({len(line) for line in table}) == 1


def test_html_stands_alone_and_is_well_formed() -> None:
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag not in ("link", "script", "img", "b")
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    written = html([hostile()])
    Check().feed(written)
    assert open_tags == [] and "http" not in written and "<td>50 % &lt;b&gt;</td>" in written
