"""The sweeps of a report with the states of their runs, and the table of all runs."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import UnfinishedRun
from qllm_exp.results.records.reader import Record
from qllm_exp.results.report.parts import (
    MAX_OPEN_ROWS,
    Html,
    command_block,
    concat,
    definition_list,
    details,
    missing_note,
    section,
    table,
    tag,
)
from qllm_exp.results.report.report_data import ReportData, display_path
from qllm_exp.results.tables.pivot import notes_on_records
from qllm_exp.runs.config_reader import ConfigReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, FINISHED, INTERRUPTED, NEW, PRUNED, QUEUED, RUNNING, STATES
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.runs.versions import segments
from qllm_exp.tracking.wandb_restore import ORIGIN_FILE
from qllm_exp.utils.text import count, duration

MAX_UNFINISHED = 200  # unfinished runs that are listed one by one
MAX_RUNS = 2_000  # rows in the table of runs; browsers get slow with more
MAX_SWEEPS = 20
MAX_OPEN_UNFINISHED = 10  # a longer list is collapsed
_STATE_ORDER = (FAILED, DEAD, INTERRUPTED, RUNNING, QUEUED, NEW, PRUNED)  # states that need attention first
_HEADS = ("run", "task", "method", "seed", "final", "absolute", "env steps", "wall time", "state")


def sweep_section(data: ReportData) -> Html:
    """Return the section on the sweeps: command, name, tags, start and version of each, and the states of the runs."""
    if not data.sweeps:
        text = f"There is no sweep record (sweep.json) in {', '.join(data.sources)}; the runs are shown as found."
        return section("sweep", "Sweep", tag("p", text), _run_states(data))
    parts = [concat([tag("h3", sweep.path.name), _sweep(sweep, data)]) for sweep in data.sweeps[:MAX_SWEEPS]]
    hidden = len(data.sweeps) - len(parts)
    if hidden:
        parts.append(missing_note(f"{count(hidden, 'more sweep')} not shown; their commands are in sweep.json."))
    return section("sweep", "Sweep", *parts, _run_states(data))


def _sweep(sweep: Sweep, data: ReportData) -> Html:
    names = set(sweep.record.runs)
    version_counts = Counter(_version(run) for run in data.collection.finished if run.name in names)
    versions = [f"{version} ({count(number, 'run')})" for version, number in version_counts.most_common()]
    tags = dict.fromkeys(chain.from_iterable(_tags(sweep)))
    pairs = [
        ("last started", sweep.record.started),
        ("runs", f"{len(names):,}"),
        ("tags", concat((tag("span", name, class_="tag") for name in tags), " ")),
        ("launcher", str(sweep.record.launcher.get("name", ""))),
        ("version", "; ".join(versions)),
    ]
    return concat([command_block(sweep.record.command), definition_list(pairs)])


def _version(run: Record) -> str:
    """Return the package version and commit of a run, or of each of its parts if it was resumed with others."""
    return " -> ".join(dict.fromkeys(map(_version_of, segments(run.versions) or [{}])))


def _version_of(versions: Mapping[str, Any]) -> str:
    version, commit = versions.get("qllm_exp"), str(versions.get("commit") or "")
    if not version:
        return "unknown version"
    text = f"qllm_exp {version}"
    if commit:
        text += f", commit {commit[:10]}"
        if commit.endswith("+changes"):
            text += "+changes"
    return text


def _tags(sweep: Sweep) -> Iterator[list[str]]:
    """Yield the tags in the configuration of each run of a sweep. Missing and invalid configurations are skipped."""
    reader = ConfigReader()
    for directory in sweep.directories:
        with suppress(UserError, yaml.YAMLError, AttributeError, TypeError):
            for block in reader.blocks(directory.config):
                if block.startswith("sweep:"):
                    yield [str(name) for name in reader.parse(block)["sweep"].get("tags") or []]


def _run_states(data: ReportData) -> Html:
    """Return the number of runs in each state, as a bar and as text, and the unfinished runs."""
    counts = Counter({FINISHED: len(data.collection.finished)})
    counts.update(run.state for run in data.collection.unfinished)
    present = [(state, counts[state]) for state in (FINISHED, *_STATE_ORDER) if counts[state]]
    bars = (tag("span", class_=f"bar {state}", style=f"flex-grow:{number}") for state, number in present)
    items = (tag("li", badge(state), f" {number:,}") for state, number in present)
    return concat(
        [
            tag("h3", "Run states"),
            tag("div", *bars, class_="bars", aria_hidden="true"),
            tag("ul", *items, class_="counts"),
            *_unfinished_runs(data),
        ]
    )


def badge(state: str) -> Html:
    """Return a state in its colour."""
    return tag("span", state, class_=f"badge {state}" if state in STATES else "badge")


def _unfinished_runs(data: ReportData) -> Iterator[Html]:
    """Yield the list of unfinished runs: the reason, the log, and the command that resumes each."""
    runs = sorted(data.collection.unfinished, key=lambda run: (_STATE_ORDER.index(run.state), run.name))
    if not runs:
        return
    yield tag("h3", "Unfinished runs")
    yield from _retry_commands(data)
    items = [_unfinished_item(run, data) for run in runs[:MAX_UNFINISHED]]
    item_list = tag("ul", *items, class_="unfinished")
    yield details(f"All {len(items)}", item_list) if len(items) > MAX_OPEN_UNFINISHED else item_list
    hidden = len(runs) - len(items)
    if hidden:
        sources = shlex.join(data.sources)
        yield missing_note(f"{hidden:,} more not shown. To list all: python -m qllm_exp status {sources} --all")


def _retry_commands(data: ReportData) -> Iterator[Html]:
    """Yield the commands that start or resume the unfinished runs of each sweep."""
    for sweep in data.sweeps:
        names = set(sweep.record.runs)
        runs = [run for run in data.collection.unfinished if run.name in names]
        states = {run.state for run in runs}
        path = shlex.quote(display_path(sweep.path))
        if states & {FAILED, DEAD}:
            yield tag("p", f"Retry the failed and dead runs of {sweep.path.name}:")
            yield command_block(f"python -m qllm_exp retry {path}")
        if any(not run.path.exists() for run in runs):
            yield tag("p", f"Create and start the missing runs of {sweep.path.name}:")
            yield command_block(sweep.record.command)
        elif states & {INTERRUPTED, NEW}:
            yield tag("p", f"Resume interrupted runs and start new runs of {sweep.path.name}:")
            yield command_block(f"python -m qllm_exp retry {path} --missing")


def _unfinished_item(run: UnfinishedRun, data: ReportData) -> Html:
    name = tag("a", run.name, href=data.link(run.path)) if run.path.is_dir() else tag("span", run.name)
    links = [tag("a", display_path(log), href=data.link(log)) for log in _logs(run, data)]
    pairs = [
        ("reason", run.reason),
        ("log", concat(links, ", ")),
        ("resume", _resume_advice(run, data)),
    ]
    return tag("li", tag("p", badge(run.state), " ", tag("span", name, class_="name")), definition_list(pairs))


def _logs(run: UnfinishedRun, data: ReportData) -> list[Path]:
    """Return the console output of the run's process, or its log, and the console output of its last job, if they exist."""
    directory = RunDirectory(run.path)
    logs = [log for log in (directory.console, directory.log) if log.exists()][:1]
    job_logs = (sweep.job_log(run.name) for sweep in reversed(data.sweeps))
    return logs + [log for log in job_logs if log is not None][:1]


def _resume_advice(run: UnfinishedRun, data: ReportData) -> Html:
    """Return the command that resumes a run, or why there is nothing to do."""
    if run.state in (RUNNING, QUEUED):
        return concat([f"nothing to do: the run is {run.state}"])
    if (run.path / ORIGIN_FILE).exists():
        return concat(["on the machine that executed the run: this directory was restored from Weights & Biases"])
    if RunDirectory(run.path).config.exists():
        return tag("code", shlex.join(["python", "-m", "qllm_exp.experiment", display_path(run.path)]))
    sweep = data.sweep_of(run.name)
    if sweep is not None:
        return tag("code", sweep.record.command)
    return concat(["with the command that created the directory"])


def runs_section(data: ReportData) -> Html:
    """Return the section with the table of all runs."""
    records, unfinished = data.records, data.collection.unfinished
    rows = [_finished_row(record, data) for record in records[:MAX_RUNS]]
    rows += [_unfinished_row(run, data) for run in unfinished[: MAX_RUNS - len(rows)]]
    total = len(records) + len(unfinished)
    caption = f"{count(total, 'run')}: returns of the last evaluation (final) and of the best parameters (absolute)"
    notes = [tag("p", note) for note in notes_on_records(records, "absolute")]
    content = concat([table(caption, _HEADS, rows, "plain sortable"), *notes])
    if total > MAX_OPEN_ROWS:
        content = details(f"All {len(rows):,} runs" if total == len(rows) else "Runs", content)
    if total == len(rows):
        return section("runs", "Runs", content)
    sources = shlex.join(data.sources)
    note = tag(
        "p",
        f"This page lists {len(rows):,} of {total:,} runs, finished runs first. For all final returns: ",
        tag("code", f"python -m qllm_exp.results table {sources} --rows env,task,method --cols seed -o runs.csv"),
        class_="missing",
    )
    return section("runs", "Runs", note, content)


def _finished_row(record: Record, data: ReportData) -> Sequence[str]:
    final, absolute = (float(record.result.get(key, "nan")) for key in ("final_return", "absolute_return"))
    steps = record.result.get("env_steps", record.steps[-1])
    has_wall_time = record.wall_s == record.wall_s  # not nan
    return (
        _run_link(record.path, record.name, data),
        record.task,
        record.method,
        _number_cell(record.seed, str(record.seed)),
        _number_cell(final, f"{final:.3f}"),
        _number_cell(absolute, f"{absolute:.3f}" if "absolute_return" in record.result else "-"),
        _number_cell(steps, f"{steps:,}"),
        _number_cell(record.wall_s, duration(record.wall_s) if has_wall_time else "-"),
        tag("td", badge(FINISHED)),
    )


def _unfinished_row(run: UnfinishedRun, data: ReportData) -> Sequence[str]:
    link = _run_link(run.path, run.name, data)
    seed = _number_cell(run.seed, str(run.seed)) if run.seed is not None else tag("td", "-")
    empty = tag("td", "-", class_="number")
    return link, run.task, run.method, seed, empty, empty, empty, empty, tag("td", badge(run.state))


def _run_link(path: Path, name: str, data: ReportData) -> Html:
    """Return the name of a run, with a link to its directory if there is one; a run of another program may be part of a file."""
    return tag("a", name, href=data.link(path)) if path.is_dir() else tag("span", name)


def _number_cell(value: object, text: str) -> Html:
    """Return a cell that shows a text and sorts by its number."""
    return tag("td", text, class_="number", data_v=value)
