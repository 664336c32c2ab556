"""The tables of a report: comparison, ablation, and costs."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.records.method_names import minimal_keys
from qllm_exp.results.records.metric_names import reported_metrics
from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Record
from qllm_exp.results.report.parts import Html, or_missing_note, results_table, section, tag
from qllm_exp.results.report.report_data import ReportData
from qllm_exp.results.tables.costs import MEASURES, cost_sheet
from qllm_exp.results.tables.table import COLUMNS, ROWS, ablation, comparison

MAX_METHOD_COLUMNS = 4  # with more methods than this, and more than tasks, methods become rows


def comparison_section(data: ReportData) -> Html:
    """Return the section with tasks by methods, for each metric, and with the costs of the runs."""
    collection = data.collection
    tables = [
        or_missing_note("table", partial(_comparison_table, collection, metric))
        for metric in reported_metrics(collection.finished)
    ]
    if not collection.finished:
        return section("comparison", "Comparison", tables[0])
    costs = or_missing_note("cost table", partial(_cost_table, collection))
    return section("comparison", "Comparison", *tables, costs)


def _comparison_table(collection: Collection, metric: str) -> Html:
    """Return tasks by methods; methods by tasks if the table would get wide and there are fewer tasks."""
    methods, tasks = len(keys.methods(collection.finished)), len(keys.tasks(collection.finished))
    rows, columns = (COLUMNS, ROWS) if methods > max(tasks, MAX_METHOD_COLUMNS) else (ROWS, COLUMNS)
    return results_table(comparison(collection, rows, columns, metric)[0])


def _cost_table(collection: Collection) -> Html:
    sheet, cells = comparison(collection)
    has_searches = any("env_steps" in record.cost for record in collection.finished)
    names = [name for name in MEASURES if name != "search" or has_searches]
    return results_table(cost_sheet(cells, sheet, names))


def ablation_section(data: ReportData) -> Html:
    """Return the section with the settings that vary; '' if only environment, mixer, algorithm or seed do."""
    axes = varied_settings(data.collection.finished)
    if not axes:
        return Html("")
    introduction = tag("p", f"Settings that vary besides task, mixer, algorithm and seed: {', '.join(axes)}.")
    body = or_missing_note("ablation table", lambda: results_table(ablation(data.collection, axes)[0]))
    return section("ablation", "Ablation", introduction, body)


def varied_settings(records: Sequence[Record]) -> list[str]:
    """Return a minimal set of settings that distinguishes the runs of one task, mixer and algorithm.

    The index of a generated function (`tfcaf.sample`) and the function itself are not settings that a user chooses.
    """
    groups: dict[tuple[str, str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        base = keys.value(record, "mixer.name"), keys.value(record, "algorithm.name"), record.task
        groups[base].setdefault(record.method, record)
    return minimal_keys([_distinct_settings(list(group.values())) for group in groups.values()])


def _distinct_settings(records: Sequence[Record]) -> list[dict[str, object]]:
    """Return the distinct combinations of the settings in which records differ, as far as a user chooses them."""
    distinct: dict[str, dict[str, object]] = {}
    for record in records:
        settings = {key: value for key, value in record.differs.items() if key not in (FUNCTION, SAMPLE)}
        distinct[repr(sorted(settings.items()))] = settings
    return list(distinct.values())
