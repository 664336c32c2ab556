"""Functions that a model wrote count once each, in figures as in tables; a seed counts once where there is one function."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_folders import STEPS, make, of

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.keys import methods
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import bootstrap_mean, estimate, iqm
from qllm_exp.results.tables.pivot import renamed
from qllm_exp.results.tables.sheet import markdown
from qllm_exp.results.tables.table import comparison

TASK, OTHER = "8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"
MIDDLES = (0.2, 0.5, 0.9)  # of the functions
SEEDS = (4, 4, 2)


def sampled(folder: Path, task: str, sample: int, seed: int, final: float) -> None:
    llm = OnlineConfig(name="openai", model="openai/x")
    run = of("tfcaf", seed, task, tfcaf=schema.GenerationConfig(sample=sample), llm=llm)
    make(folder, run, final, program=[task, sample])


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """On two tasks three functions of several seeds each, and QMIX with five seeds."""
    for at, task in enumerate((TASK, OTHER)):
        for sample, (middle, seeds) in enumerate(zip(MIDDLES, SEEDS, strict=True)):
            for seed in range(seeds):
                sampled(tmp_path, task, sample, seed, middle + 0.01 * seed - 0.05 * at)
        for seed in range(5):
            make(tmp_path, of("qmix", seed, task), 0.6 + 0.01 * seed)
    return collect([tmp_path]).finished


def by_function(records: list[Record], task: str) -> np.ndarray:
    """[functions] the slow way: of each function the mean over its seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in records:
        if one.task == f"lbf/{task}" and one.method == "tfcaf":
            found[one.settings["mixer.function"]].append(one.result["final_return"])
    return np.array([sum(part) / len(part) for part in found.values()])


def test_scores_are_those_of_functions(records: list[Record]) -> None:
    tfcaf = [one for one in records if one.method == "tfcaf"]
    tasks = [f"lbf/{TASK}", f"lbf/{OTHER}"]
    first, second = sample_units.scores(tfcaf, tasks, "final_return")
    assert sorted(first) == pytest.approx([0.215, 0.515, 0.905]) == sorted(by_function(records, TASK))
    assert sorted(second) == pytest.approx([0.165, 0.465, 0.855])
    assert sample_units.counted(tfcaf) == "n=3 functions"
    qmix = [one for one in records if one.method == "qmix"]
    assert sample_units.scores(qmix, tasks, "final_return")[1].tolist() == pytest.approx([0.6, 0.61, 0.62, 0.63, 0.64])
    assert sample_units.counted(qmix) == "n=5"


def test_a_method_is_the_same_in_tables_and_figures(records: list[Record], tmp_path: Path) -> None:
    assert methods(records) == ["tfcaf", "qmix"]
    sheet, _ = comparison(collect([tmp_path]))
    assert sheet.columns == ["tfcaf", "qmix"] and markdown([sheet]).count("(n=3 functions)") == 2
    assert sample_units.RULE in sheet.notes


def test_curves_are_over_functions(records: list[Record]) -> None:
    figure = per_task.curves(records)
    axis = next(one for one in figure.axes if one.get_title() == f"lbf/{TASK}")
    line = next(one for one in axis.lines if one.get_label() == "tfcaf (n=3 functions)")
    values = np.outer(by_function(records, TASK), np.linspace(0, 1, 5))
    assert list(line.get_xdata()) == list(STEPS) and np.allclose(line.get_ydata(), values.mean(0))
    low, high = bootstrap_mean(values)
    bands = [one.get_paths()[0].vertices[:, 1] for one in axis.collections]
    assert any(np.allclose([band.min(), band.max()], [low.min(), high.max()]) for band in bands)


def test_aggregated_curves_are_over_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.aggregated_curves(records).axes
    line = next(one for one in axis.lines if one.get_label() == "tfcaf (n=3 functions)")
    scores = [by_function(records, task) for task in (TASK, OTHER)]  # 0 and 1 are the bounds of both tasks
    expected = estimate(scores, iqm)
    assert float(line.get_ydata()[-1]) == pytest.approx(expected.value)
    bands = [one.get_paths()[0].vertices[:, 1] for one in axis.collections]
    assert any(band.max() == pytest.approx(expected.high) for band in bands)


def test_bars_have_a_dot_for_each_function(records: list[Record]) -> None:
    axis = next(one for one in per_task.bars(records).axes if one.get_title() == f"lbf/{TASK}")
    assert [one.get_text() for one in axis.get_xticklabels()] == ["tfcaf\n(n=3\nfunctions)", "qmix\n(n=5)"]
    assert axis.patches[0].get_height() == pytest.approx(by_function(records, TASK).mean())
    dots = [sorted(line.get_ydata()) for line in axis.lines if line.get_marker() == "o"]
    assert sorted(by_function(records, TASK)) == pytest.approx(dots[0]) and len(dots[1]) == 5


def test_profiles_are_shares_of_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.profiles(records).axes
    line = next(one for one in axis.lines if one.get_label() == "tfcaf (n=3 functions)")
    at = dict(zip(np.round(line.get_xdata(), 2), line.get_ydata(), strict=True))
    assert at[0.19] == pytest.approx(5 / 6) and at[0.6] == pytest.approx(2 / 6) and at[0.88] == pytest.approx(1 / 6)


def test_an_improvement_is_of_functions(records: list[Record]) -> None:
    (axis,) = across_tasks.improvement(records).axes
    (bar,) = axis.patches
    wins = []
    for task in (TASK, OTHER):
        qmix = [one.result["final_return"] for one in records if (one.task, one.method) == (f"lbf/{task}", "qmix")]
        wins += [np.mean([float(x > y) for x in by_function(records, task) for y in qmix])]
    assert bar.get_x() + bar.get_width() == pytest.approx(np.mean(wins))
    assert "n = 3 seeds or functions" in " ".join(axis.figure.get_supxlabel().split())


KINDS: list[Callable[..., Figure]] = [
    *(per_task.curves, per_task.bars, across_tasks.aggregated_curves, across_tasks.profiles, across_tasks.improvement)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_says_how_functions_count(records: list[Record], kind: Callable[..., Figure]) -> None:
    said = " ".join(kind(records).get_supxlabel().split())
    assert sample_units.RULE in said and "Fewer than 5 seeds or functions" in said
    seeds = " ".join(
        kind([one for one in records if one.method == "qmix"] + qmix_like(records)).get_supxlabel().split()
    )
    assert "function" not in seeds


def qmix_like(records: list[Record]) -> list[Record]:
    """A second method without functions, so that every figure can be drawn."""
    from dataclasses import replace

    return [replace(one, method="vdn") for one in records if one.method == "qmix"]


def test_functions_can_be_seen_apart(records: list[Record]) -> None:
    apart = renamed(records, ["method", "tfcaf.sample"])
    assert methods(apart) == ["tfcaf sample=0", "tfcaf sample=1", "tfcaf sample=2", "qmix"]
    axis = per_task.curves(apart).axes[0]
    assert {one.get_label() for one in axis.lines} == {
        *("tfcaf sample=0 (n=4)", "tfcaf sample=1 (n=4)", "tfcaf sample=2 (n=2)", "qmix (n=5)")
    }
    assert len(methods(renamed(records, ["method", "mixer.function"]))) == 7  # the tasks have functions of their own


def test_methods_may_be_made_of_any_keys(records: list[Record], tmp_path: Path) -> None:
    assert renamed(records, ["method"]) == records
    assert methods(renamed(records, ["mixer", "seed"]))[:2] == ["tfcaf seed=0", "tfcaf seed=1"]
    for hidden in (32, 64):
        make(tmp_path, of("vdn", train=schema.TrainConfig(hidden=hidden)), 0.5)
    every = collect([tmp_path]).finished
    with pytest.raises(UserError, match=r"mixer=vdn differ in train\.hidden.*--only train\.hidden=32"):
        renamed(every, ["mixer"])
    assert set(methods(renamed(every, ["mixer", "train.hidden"]))) > {"vdn hidden=32", "vdn hidden=64"}
    with pytest.raises(UserError, match="Did you mean 'mixer'"):
        renamed(every, ["mixr"])
