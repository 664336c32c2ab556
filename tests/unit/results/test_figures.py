"""Figures show every method on every task, and note the runs that are missing from them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from run_folders import STEPS, make_run, run_config

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.results.figures import across_tasks, per_task, style
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.aggregate import bootstrap_mean

OTHER = "10x10-3p-3f-2s"
KINDS: list[Callable[..., None]] = [
    per_task.curves,
    per_task.bars,
    across_tasks.aggregated_curves,
    across_tasks.profiles,
    across_tasks.improvement,
]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    for task, base in (("8x8-2p-2f-coop-2s", 0.8), (OTHER, 0.6)):
        for mixer, gain in (("qmix", 0.0), ("vdn", 0.1)):
            for seed in range(3):
                make_run(tmp_path / "runs", run_config(mixer, seed, task), base + gain + 0.02 * seed)
    return collect([tmp_path / "runs"]).finished


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    return figures


def all_text(figure: Figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("kind", [per_task.bars, across_tasks.profiles, across_tasks.improvement])
def test_a_figure_of_the_absolute_metric_says_that_it_is_chosen_by_noisy_evaluations(
    records: list[Record], kind: Callable[..., Figure]
) -> None:
    assert "depends on its noise" not in " ".join(all_text(kind(records)).split())
    assert "depends on its noise" in " ".join(all_text(kind(records, metric="absolute")).split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_gives_the_format(
    records: list[Record], tmp_path: Path, kind: Callable[..., None], suffix: str, magic: bytes
) -> None:
    path = tmp_path / "new" / f"figure.{suffix}"
    kind(records, path)
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_notes_what_is_missing_and_what_its_intervals_are(
    records: list[Record], drawn: list[Figure], kind: Callable[..., None]
) -> None:
    kind(records, Path("x.png"), missing=["Missing: vdn on a/b: 1 failed (s3)."])
    notes = " ".join(drawn[0].get_supxlabel().split())
    assert "95 %" in notes and notes.endswith("Missing: vdn on a/b: 1 failed (s3).")
    text = all_text(drawn[0])
    assert "qmix" in text and "vdn" in text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_or_covered(records: list[Record], drawn: list[Figure], kind: Callable[..., None]) -> None:
    kind(records, Path("x.png"), missing=["Missing: " + "a long list of runs that are missing " * 8])
    figure = drawn[0]
    figure.draw_without_rendering()
    canvas = figure.bbox.padded(1)
    small_print = next(text for text in figure.texts if text.get_text() == figure.get_supxlabel())
    notes_box = small_print.get_window_extent()
    for axis in (axis for axis in figure.axes if axis.get_visible()):
        box = axis.get_tightbbox()
        assert box is not None and canvas.contains(box.x0, box.y0) and canvas.contains(box.x1, box.y1)
        assert box.y0 >= notes_box.y1 - 1
    assert canvas.contains(notes_box.x0, notes_box.y0) and canvas.contains(notes_box.x1, notes_box.y1)


def test_curves_are_means_with_bootstrap_bands(records: list[Record], drawn: list[Figure]) -> None:
    per_task.curves(records, Path("x.png"))
    axis = next(axis for axis in drawn[0].axes if axis.get_title() == "lbf/8x8-2p-2f-coop-2s")
    line = next(line for line in axis.lines if line.get_label() == "vdn (n=3)")
    values = np.outer([0.9, 0.92, 0.94], np.linspace(0, 1, 5))
    assert list(line.get_xdata()) == list(STEPS) and np.allclose(line.get_ydata(), values.mean(0))
    low, high = bootstrap_mean(values)
    bands = [band.get_paths()[0].vertices[:, 1] for band in axis.collections]
    assert any(np.allclose([band.min(), band.max()], [low.min(), high.max()]) for band in bands)


def test_curves_note_the_evaluations_that_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    make_run(tmp_path, run_config("vdn", 0), 0.5, steps=(0, 10, 20, 30))
    make_run(tmp_path, run_config("vdn", 1), 0.5, steps=(0, 10, 30))
    per_task.curves(collect([tmp_path]).finished, Path("x.png"))
    assert "evaluations at the 3 of 4 steps that all 2 runs share" in " ".join(drawn[0].get_supxlabel().split())


def test_aggregated_curves_are_the_iqm_of_normalised_returns(records: list[Record], drawn: list[Figure]) -> None:
    across_tasks.aggregated_curves(records, Path("x.png"))
    line = next(line for line in drawn[0].axes[0].lines if line.get_label() == "qmix (n=3)")
    final = sorted([0.8, 0.82, 0.84, 0.6, 0.62, 0.64])  # 1 is all food on both tasks; of six, half is three
    iqm = (0.5 * final[1] + final[2] + final[3] + 0.5 * final[4]) / 3
    assert np.allclose(line.get_ydata(), iqm * np.linspace(0, 1, 5))
    assert "1 is 1 (no food and all food loaded)" in drawn[0].get_supxlabel()


def test_win_rates_are_drawn_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    for task, rate in (("3m", 0.9), ("2s3z", 0.5)):
        for mixer in ("qmix", "vdn"):
            make_run(tmp_path, run_config(mixer, 0, task, env="smax"), 1.0, metrics={"win": [0, 0, 0.1, 0.2, rate]})
    records = collect([tmp_path]).finished
    per_task.curves(records, metric="win_rate")
    per_task.bars(records, metric="win_rate")
    across_tasks.aggregated_curves(records, metric="win_rate")
    across_tasks.profiles(records, metric="win_rate")
    curves, bars, aggregated, profiles = drawn
    assert curves.axes[0].lines[0].get_ydata()[-1] in (0.5, 0.9)
    assert {axis.get_ylabel() for figure in (curves, bars) for axis in figure.axes} == {"win rate"}
    assert aggregated.axes[0].get_ylabel() == "win rate, IQM" and profiles.axes[0].get_xlabel() == "win rate τ"
    assert aggregated.axes[0].lines[0].get_ydata()[-1] == pytest.approx(0.7)


def test_a_metric_that_the_environment_reports_is_drawn_and_pooled_like_a_return(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    for task, length in (("3m", 20.0), ("2s3z", 60.0)):
        for mixer, shorter in (("qmix", 0.0), ("vdn", 10.0)):
            lengths = [100.0, 100.0, 100.0, 100.0, length - shorter]
            make_run(tmp_path, run_config(mixer, 0, task, env="smax"), 1.0, metrics={"length": lengths})
    records = collect([tmp_path]).finished
    per_task.curves(records, metric="length")
    per_task.bars(records, metric="length")
    across_tasks.aggregated_curves(records, metric="length")
    curves, bars, aggregated = drawn
    assert sorted(axis.lines[0].get_ydata()[-1] for axis in curves.axes) == [20.0, 60.0]
    assert {axis.get_ylabel() for figure in (curves, bars) for axis in figure.axes} == {"length"}
    assert aggregated.axes[0].get_ylabel() == "normalised length, IQM"
    qmix = next(line for line in aggregated.axes[0].lines if line.get_label() == "qmix (n=1)")
    assert qmix.get_ydata()[-1] == pytest.approx((10 / 90 + 10 / 50) / 2), (
        "0 and 1: the lowest and the highest of a task"
    )
    assert "0 is a length of 10, 1 is 100" in " ".join(aggregated.get_supxlabel().split())
    with pytest.raises(UserError, match=r"Did you mean 'length'\? Allowed: final, absolute, win_rate, length"):
        per_task.bars(records, metric="lengths")


def test_many_notes_leave_the_panels_their_height(records: list[Record], tmp_path: Path) -> None:
    heights = []
    for count in (0, 30):
        figure = per_task.curves(records, tmp_path / "x.png", [f"Missing: run {number}." for number in range(count)])
        heights.append(figure.axes[0].get_window_extent().height / figure.dpi)
    assert heights[1] > 0.8 * heights[0]


def test_win_rates_of_tasks_without_wins_are_refused(records: list[Record]) -> None:
    for draw in (per_task.curves, per_task.bars, across_tasks.aggregated_curves, across_tasks.profiles):
        with pytest.raises(UserError, match="reports no wins"):
            draw(records, metric="win_rate")  # type: ignore[operator]
    with pytest.raises(UserError, match="win_rate"):
        per_task.curves(records, metric="final")


def test_tasks_that_not_all_methods_have_are_left_out_and_listed(
    records: list[Record], tmp_path: Path, drawn: list[Figure]
) -> None:
    make_run(tmp_path / "more", run_config("qmix", 0, "15x15-4p-3f-2s"), 0.0)
    all_records = [*records, *collect([tmp_path / "more"]).finished]
    for kind in KINDS[2:]:
        kind(all_records, Path("x.png"))
    for figure in drawn:
        assert "Left out, since not all methods have them with a scale: lbf/15x15-4p-3f-2s." in " ".join(
            figure.get_supxlabel().split()
        )


def test_methods_without_a_common_task_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    make_run(tmp_path, run_config("vdn", 0, OTHER), 0.5)
    with pytest.raises(UserError, match=r"No task has runs of all 2 methods.*qmix: lbf/8x8"):
        across_tasks.profiles(collect([tmp_path]).finished, tmp_path / "x.png")


def test_an_improvement_needs_two_methods(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    with pytest.raises(UserError, match=r"Only qmix found; .*compares two methods"):
        across_tasks.improvement(collect([tmp_path]).finished, tmp_path / "x.png")


def test_profiles_are_the_share_of_runs_above(records: list[Record], drawn: list[Figure]) -> None:
    across_tasks.profiles(records, Path("x.png"))
    line = next(line for line in drawn[0].axes[0].lines if line.get_label() == "qmix (n=3)")
    share = dict(zip(np.round(line.get_xdata(), 2), line.get_ydata(), strict=True))
    assert share[0.5] == 1 and share[0.7] == 0.5 and share[0.83] == pytest.approx(1 / 6) and share[0.9] == 0


def test_improvement_is_of_each_pair(records: list[Record], drawn: list[Figure]) -> None:
    across_tasks.improvement(records, Path("x.png"))
    axis = drawn[0].axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["qmix  >  vdn"]
    (bar,) = axis.patches
    assert bar.get_x() + bar.get_width() == pytest.approx(0.0)


def test_methods_are_compared_with_one_method_where_there_are_too_many_pairs(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    for number in range(7):
        for seed in range(2):
            make_run(tmp_path, run_config("vdn", seed, train=schema.TrainConfig(hidden=number + 1)), 0.5 + number)
    records = collect([tmp_path]).finished
    with pytest.raises(UserError, match=r"7 methods are 21 pairs.*--against 'vdn hidden=7'"):
        across_tasks.improvement(records, Path("x.png"))
    with pytest.raises(UserError, match=r"--against='vdn hiden=1' is unknown. Did you mean 'vdn hidden=1'\?"):
        across_tasks.improvement(records, Path("x.png"), against="vdn hiden=1")
    across_tasks.improvement(records, Path("x.png"), against="vdn hidden=1")
    assert [bar.get_width() for bar in drawn[0].axes[0].patches] == [0.5] * 6


def test_few_seeds_are_noted(records: list[Record], drawn: list[Figure]) -> None:
    for kind in KINDS:
        kind(records, Path("x.png"))
    assert all("Fewer than 5 seeds" in figure.get_supxlabel() for figure in drawn)


def test_bars_are_means(records: list[Record], drawn: list[Figure]) -> None:
    per_task.bars(records, Path("x.png"))
    axis = next(axis for axis in drawn[0].axes if OTHER in axis.get_title())
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([0.62, 0.72])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["qmix\n(n=3)", "vdn\n(n=3)"]


@pytest.mark.parametrize("last_step", [10_000, 200_000, 500_000, 2_000_000, 20_050_000])
def test_labels_of_environment_steps_are_few_and_short(last_step: int) -> None:
    figure, (axis,) = style.panels(1)
    axis.plot([0, last_step], [0, 1])
    per_task.format_steps_axis(axis)
    figure.draw_without_rendering()
    ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
    labels = [label.get_text() for position, label in ticks if 0 <= position <= last_step]
    assert 3 <= len(labels) <= 6 and max(map(len, labels)) <= 4, labels


@pytest.mark.parametrize("count", [6, 8])
@pytest.mark.parametrize("same_methods", [True, False])
def test_many_methods_have_their_legend_beside_the_curves(
    tmp_path: Path, drawn: list[Figure], same_methods: bool, count: int
) -> None:
    """One legend for all tasks if they have the same methods."""
    for number in range(count):
        tasks = (OTHER, "8x8-2p-2f-coop") if same_methods or number > 0 else (OTHER,)
        for task in tasks:
            make_run(
                tmp_path, run_config("vdn", task=task, train=schema.TrainConfig(learning_rate=1e-4 * (number + 1))), 0.5
            )
    per_task.curves(collect([tmp_path]).finished, Path("x.png"))
    drawn[0].draw_without_rendering()
    owners = drawn[0].legends if same_methods else [axis.get_legend() for axis in drawn[0].axes]
    assert len(owners) == (1 if same_methods else 2)
    for axis, legend in zip(drawn[0].axes[-len(owners) :], owners, strict=True):
        assert legend is not None
        box = legend.get_window_extent()
        assert box.x0 > axis.bbox.x1 and drawn[0].bbox.x1 >= box.x1 - 1
    assert len(re.findall("learning_rate", all_text(drawn[0]))) == (count if same_methods else 2 * count - 1)
