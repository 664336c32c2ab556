"""The tables of a report: comparison, ablation, and what the runs took."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.records.method_names import fewest
from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Record
from qllm_exp.results.report.parts import Html, or_sentence, section, sheet, tag
from qllm_exp.results.report.subject import ReportData
from qllm_exp.results.tables.costs import FIGURES, spent
from qllm_exp.results.tables.pivot import METRICS
from qllm_exp.results.tables.table import COLUMNS, ROWS, ablation, comparison

MOST_COLUMNS = 4  # of methods, where there are fewer tasks


def comparisons(subject: ReportData) -> Html:
    """The section with tasks by methods, by each metric, and with what the runs took."""
    found = subject.collection
    tables = [or_sentence("table", partial(_compared, found, metric)) for metric in METRICS]
    if not found.finished:
        return section("comparison", "Comparison", tables[0])
    took = or_sentence("table of what the runs took", lambda: _took(found))
    return section("comparison", "Comparison", *tables, took)


def _compared(found: Collection, metric: str) -> Html:
    """Tasks by methods; methods by tasks where these are fewer and the table would get wide."""
    methods, tasks = len(keys.methods(found.finished)), len(keys.tasks(found.finished))
    rows, columns = (COLUMNS, ROWS) if methods > max(tasks, MOST_COLUMNS) else (ROWS, COLUMNS)
    return sheet(comparison(found, rows, columns, metric)[0])


def _took(found: Collection) -> Html:
    one, cells = comparison(found)
    return sheet(spent(cells, one, list(FIGURES)))


def ablations(subject: ReportData) -> Html:
    """The section with the values of the settings that were varied; '' where only environment, mixer, algorithm or seed were."""
    varied = axes(subject.collection.finished)
    if not varied:
        return Html("")
    words = ", ".join(varied)
    body = or_sentence("ablation table", lambda: sheet(ablation(subject.collection, varied)[0]))
    return section("ablation", "Ablation", tag("p", f"Varied beside task, mixer, algorithm and seed: {words}."), body)


def axes(records: Sequence[Record]) -> list[str]:
    """The settings that were varied within runs of one task, mixer and algorithm: as few as tell these apart.

    What a language model wrote anew (`tfcaf.sample`), and the function that it wrote, are no settings that one chooses.
    """
    groups: dict[tuple[str, str, str], dict[str, Record]] = defaultdict(dict)
    for one in records:
        base = keys.value(one, "mixer.name"), keys.value(one, "algorithm.name"), one.task
        groups[base].setdefault(one.method, one)
    variants = [[_chosen(one) for one in group.values()] for group in groups.values()]
    return fewest([list({repr(sorted(one.items())): one for one in group}.values()) for group in variants])


def _chosen(one: Record) -> dict[str, object]:
    return {key: value for key, value in one.differs.items() if key not in (FUNCTION, SAMPLE)}
