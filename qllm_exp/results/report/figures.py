"""The figures of a report: learning curves of each task, and figures over all tasks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.records import keys
from qllm_exp.results.report.parts import Html, concat, missing_note, or_missing_note, section, tag
from qllm_exp.results.report.report_data import ReportData
from qllm_exp.results.report.svg import render_svg, svg_figure
from qllm_exp.results.tables.table import finished_records
from qllm_exp.utils.text import count

MAX_TASKS = 24  # tasks with a figure of their own

_Draw = Callable[[Path], object]


def figures_section(data: ReportData) -> Html:
    """Return the section with all figures; if one cannot be drawn, the reason takes its place."""
    return section("figures", "Figures", or_missing_note("figure", lambda: _all_figures(data)))


def _all_figures(data: ReportData) -> Html:
    records = finished_records(data.collection)
    tasks = keys.tasks(records)
    task_figures = [
        _figure(
            f"curve{index}",
            f"Learning curves on {task}: evaluation return against environment steps",
            partial(per_task.curves, records, only=task),
        )
        for index, task in enumerate(tasks[:MAX_TASKS])
    ]
    if len(tasks) == 1:
        aggregated = missing_note("No aggregated curves: for one task they would only rescale the curves above.")
    else:
        aggregated = _figure(
            "aggregated",
            "Aggregated learning curves: interquartile mean of normalised returns over all tasks",
            partial(across_tasks.aggregated_curves, records),
        )
    profiles = _figure(
        "profiles",
        "Performance profiles: share of runs above each normalised final return",
        partial(across_tasks.profiles, records),
    )
    improvement = _figure(
        "improvement",
        "Probability of improvement: how often a run of one method scores higher than a run of another",
        partial(across_tasks.improvement, records),
    )
    parts = [tag("h3", "Learning curves"), tag("div", *task_figures, class_="panels")]
    hidden = len(tasks) - len(task_figures)
    if hidden > 0:
        parts.append(
            missing_note(f"{count(hidden, 'more task')} not shown. To draw all: python -m qllm_exp.results curves.")
        )
    parts.append(tag("h3", "Over all tasks"))
    parts.append(tag("div", aggregated, profiles, improvement, class_="panels whole"))
    return concat(parts)


def _figure(name: str, label: str, draw: _Draw) -> Html:
    """Return a figure, or the reason why it cannot be drawn; the label starts with its name."""
    figure_name = label.partition(":")[0].lower()
    return or_missing_note(figure_name, lambda: svg_figure(render_svg(draw), name, label))
