"""Each generated function counts once, in figures as in tables; with a single function, each seed counts once."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_folders import STEPS, make_run, run_config

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.keys import methods
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import bootstrap_mean, estimate, iqm
from qllm_exp.results.tables.pivot import rename_methods
from qllm_exp.results.tables.sheet import markdown
from qllm_exp.results.tables.table import comparison

TASK, OTHER = "8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"
MIDDLES = (0.2, 0.5, 0.9)  # of the functions
SEEDS = (4, 4, 2)


def make_sample(folder: Path, task: str, sample: int, seed: int, final: float) -> None:
    llm = OnlineConfig(name="openai", model="openai/x")
    run = run_config("tfcaf", seed, task, tfcaf=schema.GenerationConfig(sample=sample), llm=llm)
    make_run(folder, run, final, program=[task, sample])


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Three functions with several seeds each on two tasks, and QMIX with five seeds."""
    for at, task in enumerate((TASK, OTHER)):
        for sample, (middle, seeds) in enumerate(zip(MIDDLES, SEEDS, strict=True)):
            for seed in range(seeds):
                make_sample(tmp_path, task, sample, seed, middle + 0.01 * seed - 0.05 * at)
        for seed in range(5):
            make_run(tmp_path, run_config("qmix", seed, task), 0.6 + 0.01 * seed)
    return collect([tmp_path]).finished


def by_function(records: list[Record], task: str) -> np.ndarray:
    """Return [functions]: the mean over the seeds of each function, the slow way."""
    returns: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.task == f"lbf/{task}" and record.method == "tfcaf":
            returns[record.settings["mixer.function"]].append(record.result["final_return"])
    return np.array([sum(values) / len(values) for values in returns.values()])


def test_scores_are_those_of_functions(records: list[Record]) -> None:
    tfcaf = [record for record in records if record.method == "tfcaf"]
    tasks = [f"lbf/{TASK}", f"lbf/{OTHER}"]
    first, second = sample_units.scores(tfcaf, tasks, "final_return")
    assert sorted(first) == pytest.approx([0.215, 0.515, 0.905]) == sorted(by_function(records, TASK))
    assert sorted(second) == pytest.approx([0.165, 0.465, 0.855])
    assert sample_units.n_label(tfcaf) == "n=3 functions"
    qmix = [record for record in records if record.method == "qmix"]
    assert sample_units.scores(qmix, tasks, "final_return")[1].tolist() == pytest.approx([0.6, 0.61, 0.62, 0.63, 0.64])
    assert sample_units.n_label(qmix) == "n=5"


def test_a_method_is_the_same_in_tables_and_figures(records: list[Record], tmp_path: Path) -> None:
    assert methods(records) == ["tfcaf", "qmix"]
    sheet, _ = comparison(collect([tmp_path]))
    assert sheet.columns == ["tfcaf", "qmix"] and markdown([sheet]).count("(n=3 functions)") == 2
    assert sample_units.FUNCTIONS_NOTE in sheet.notes


def test_curves_are_over_functions(records: list[Record]) -> None:
    figure = per_task.curves(records)
    axis = next(axis for axis in figure.axes if axis.get_title() == f"lbf/{TASK}")
    line = next(line for line in axis.lines if line.get_label() == "tfcaf (n=3 functions)")
    values = np.outer(by_function(records, TASK), np.linspace(0, 1, 5))
    assert list(line.get_xdata()) == list(STEPS) and np.allclose(line.get_ydata(), values.mean(0))
    low, high = bootstrap_mean(values)
    bands = [band.get_paths()[0].vertices[:, 1] for band in axis.collections]
    assert any(np.allclose([band.min(), band.max()], [low.min(), high.max()]) for band in bands)


def test_aggregated_curves_are_over_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.aggregated_curves(records).axes
    line = next(line for line in axis.lines if line.get_label() == "tfcaf (n=3 functions)")
    scores = [by_function(records, task) for task in (TASK, OTHER)]  # 0 and 1 are the bounds of both tasks
    expected = estimate(scores, iqm)
    assert float(line.get_ydata()[-1]) == pytest.approx(expected.value)
    bands = [band.get_paths()[0].vertices[:, 1] for band in axis.collections]
    assert any(band.max() == pytest.approx(expected.high) for band in bands)


def test_bars_have_a_dot_for_each_function(records: list[Record]) -> None:
    axis = next(axis for axis in per_task.bars(records).axes if axis.get_title() == f"lbf/{TASK}")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["tfcaf\n(n=3\nfunctions)", "qmix\n(n=5)"]
    assert axis.patches[0].get_height() == pytest.approx(by_function(records, TASK).mean())
    dots = [sorted(line.get_ydata()) for line in axis.lines if line.get_marker() == "o"]
    assert sorted(by_function(records, TASK)) == pytest.approx(dots[0]) and len(dots[1]) == 5


def test_profiles_are_shares_of_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.profiles(records).axes
    line = next(line for line in axis.lines if line.get_label() == "tfcaf (n=3 functions)")
    at = dict(zip(np.round(line.get_xdata(), 2), line.get_ydata(), strict=True))
    assert at[0.19] == pytest.approx(5 / 6) and at[0.6] == pytest.approx(2 / 6) and at[0.88] == pytest.approx(1 / 6)


def test_an_improvement_is_of_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.improvement(records).axes
    (bar,) = axis.patches
    wins = []
    for task in (TASK, OTHER):
        qmix = [
            record.result["final_return"]
            for record in records
            if (record.task, record.method) == (f"lbf/{task}", "qmix")
        ]
        wins += [np.mean([float(x > y) for x in by_function(records, task) for y in qmix])]
    assert bar.get_x() + bar.get_width() == pytest.approx(np.mean(wins))
    assert "n = 3 seeds or functions" in " ".join(axis.figure.get_supxlabel().split())


KINDS: list[Callable[..., Figure]] = [
    *(per_task.curves, per_task.bars, across_tasks.aggregated_curves, across_tasks.profiles, across_tasks.improvement)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_has_the_note_on_functions(records: list[Record], kind: Callable[..., Figure]) -> None:
    text = " ".join(kind(records).get_supxlabel().split())
    assert sample_units.FUNCTIONS_NOTE in text and "Fewer than 5 seeds or functions" in text
    seeds = " ".join(
        kind([record for record in records if record.method == "qmix"] + qmix_like(records)).get_supxlabel().split()
    )
    assert "function" not in seeds


def qmix_like(records: list[Record]) -> list[Record]:
    """A second method without functions, so that every figure can be drawn."""
    from dataclasses import replace

    return [replace(record, method="vdn") for record in records if record.method == "qmix"]


def test_functions_can_be_shown_separately(records: list[Record]) -> None:
    apart = rename_methods(records, ["method", "tfcaf.sample"])
    assert methods(apart) == ["tfcaf sample=0", "tfcaf sample=1", "tfcaf sample=2", "qmix"]
    axis = per_task.curves(apart).axes[0]
    assert {line.get_label() for line in axis.lines} == {
        *("tfcaf sample=0 (n=4)", "tfcaf sample=1 (n=4)", "tfcaf sample=2 (n=2)", "qmix (n=5)")
    }
    assert (
        len(methods(rename_methods(records, ["method", "mixer.function"]))) == 7
    )  # the tasks have functions of their own


def test_methods_may_be_named_by_any_keys(records: list[Record], tmp_path: Path) -> None:
    assert rename_methods(records, ["method"]) == records
    assert methods(rename_methods(records, ["mixer", "seed"]))[:2] == ["tfcaf seed=0", "tfcaf seed=1"]
    for hidden in (32, 64):
        make_run(tmp_path, run_config("vdn", train=schema.TrainConfig(hidden=hidden)), 0.5)
    every = collect([tmp_path]).finished
    with pytest.raises(UserError, match=r"mixer=vdn differ in train\.hidden.*--only train\.hidden=32"):
        rename_methods(every, ["mixer"])
    assert set(methods(rename_methods(every, ["mixer", "train.hidden"]))) > {"vdn hidden=32", "vdn hidden=64"}
    with pytest.raises(UserError, match="Did you mean 'mixer'"):
        rename_methods(every, ["mixr"])
