"""The figures of a report: curves of each task, and what is said over all tasks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.records import keys
from qllm_exp.results.report.parts import Html, absent, joined, or_sentence, section, tag
from qllm_exp.results.report.subject import ReportData
from qllm_exp.results.report.svg import drawn, figure
from qllm_exp.results.tables.table import finished
from qllm_exp.utils.text import count

MOST_TASKS = 24  # with a figure of their own

_Draw = Callable[[Path], object]


def drawings(subject: ReportData) -> Html:
    """The section with all figures; where one cannot be drawn, the reason stands in its place."""
    return section("figures", "Figures", or_sentence("figure", lambda: _all(subject)))


def _all(subject: ReportData) -> Html:
    records = finished(subject.collection)
    tasks = keys.tasks(records)
    each = [
        _figure(
            f"curve{at}",
            f"Learning curves on {task}: evaluation return against environment steps",
            partial(per_task.curves, records, only=task),
        )
        for at, task in enumerate(tasks[:MOST_TASKS])
    ]
    left = len(tasks) - len(each)
    more = absent(
        f"{count(left, 'task')} more have no figure of their own here; python -m qllm_exp.results curves draws them."
    )
    if len(tasks) == 1:
        overall = absent("No aggregated curves: with one task only they would be the curves above on another scale.")
    else:
        overall = _figure(
            "aggregated",
            "Aggregated learning curves: interquartile mean of normalised returns over all tasks",
            partial(across_tasks.aggregated_curves, records),
        )
    scores = [
        _figure(
            "profiles",
            "Performance profiles: share of runs above each normalised final return",
            partial(across_tasks.profiles, records),
        ),
        _figure(
            "improvement",
            "Probability of improvement: how often a run of one method scores higher than one of another",
            partial(across_tasks.improvement, records),
        ),
    ]
    return joined(
        [
            tag("h3", "Learning curves"),
            tag("div", *each, class_="panels"),
            *[more] * (left > 0),
            tag("h3", "Over all tasks"),
            tag("div", overall, *scores, class_="panels whole"),
        ]
    )


def _figure(name: str, label: str, draw: _Draw) -> Html:
    what = label.partition(":")[0].lower()
    return or_sentence(what, lambda: figure(drawn(draw), name, label))
