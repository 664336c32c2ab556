"""Costs, versions, how to reproduce the results, and the settings in which methods differ."""

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

from qllm_exp.results.records import keys
from qllm_exp.results.records.reader import Record
from qllm_exp.results.report.parts import (
    Html,
    command_block,
    concat,
    definition_list,
    missing_note,
    section,
    table,
    tag,
)
from qllm_exp.results.report.report_data import ReportData, display_path, one_record_per_method
from qllm_exp.results.tables.costs import MEASURES
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.versions import segments
from qllm_exp.utils.text import count, duration

_SINGLE_RUN_TEXT = (
    "There is no sweep command. To repeat a run from the start, copy only config.yaml (and tfcaf.json, if there is one) into a "
    "new directory, and run it:"
)
_TASK_KEYS = ("env.", "seed")


def cost_section(data: ReportData) -> Html:
    """Return the section on the total cost of the finished runs."""
    records = data.records
    if not records:
        return section("cost", "Cost", missing_note("No run has finished, so there is no cost to report."))
    wall_times = [record.wall_s for record in records if math.isfinite(record.wall_s)]
    wall_time = duration(sum(wall_times))
    unknown = len(records) - len(wall_times)
    if unknown:
        wall_time += f" (not recorded for {count(unknown, 'run')})"
    steps = sum(int(record.result.get("env_steps", record.steps[-1])) for record in records)
    pairs = [
        ("finished runs", f"{len(records):,}"),
        ("environment steps", f"{steps:,}"),
        ("wall time", wall_time),
    ]
    searches = MEASURES["search"] if any("env_steps" in record.cost for record in records) else {}
    for name, measure in (MEASURES["cost"] | searches).items():
        value = measure(records)
        pairs.append((name, {"-": "no function", "?": "price unknown"}.get(value, value)))
    note = "Wall time: sum over runs, training and evaluation. LLM calls: each function counts once, however many seeds use it."
    return section("cost", "Cost", definition_list(pairs), tag("p", note, class_="note"))


def versions_section(data: ReportData) -> Html:
    """Return the section on the versions of the finished runs, with differences marked."""
    with_versions = [record for record in data.records if record.versions]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in with_versions:
        parts = segments(record.versions)
        for name in dict.fromkeys(chain.from_iterable(parts)):
            if name != "env_step":
                # Of a resumed run all versions, in order. A report is passed on: `segments` name no machine.
                distinct = dict.fromkeys(str(part[name]) or "none" for part in parts if name in part)
                counts[name][" -> ".join(distinct)] += 1
    if not counts:
        return section("versions", "Versions", missing_note("No finished run recorded its versions."))
    rows = []
    differing = []
    for name, version_counts in counts.items():
        values = _version_values(version_counts, len(with_versions))
        mark: str = ""
        if len(values) > 1:
            differing.append(name)
            mark = tag("span", "differs", class_="badge differs")
        rows.append((name, concat([tag("div", value) for value in values]), mark))
    text = f"Differs between runs: {', '.join(differing)}." if differing else "Identical in all finished runs."
    without_versions = len(data.records) - len(with_versions)
    if without_versions:
        text += f" Not recorded for {count(without_versions, 'run')}."
    content = table("Versions of the finished runs", ("name", "version", "remark"), rows, "plain wraps")
    return section("versions", "Versions", tag("p", text), content)


def _version_values(version_counts: Counter[str], runs: int) -> list[str]:
    """Return the versions of one library, with the number of runs of each if there are several.

    Args:
        version_counts: number of runs by version.
        runs: number of runs that recorded versions.
    """
    values = []
    for version, number in version_counts.most_common():
        value = version or "none"
        if len(version_counts) > 1:
            value += f" ({count(number, 'run')})"
        values.append(value)
    missing = runs - sum(version_counts.values())
    if missing:
        values.append(f"not recorded ({count(missing, 'run')})")
    return values


def reproduce_section(data: ReportData) -> Html:
    """Return the section on how to reproduce the results, and the settings that distinguish the methods."""
    sources = shlex.join(data.sources)
    parts = [
        *_checkout_commands(data.records),
        *_run_commands(data),
        tag("p", "Create the tables and this page:"),
        command_block(f"python -m qllm_exp.results table {sources}", f"python -m qllm_exp.results report {sources}"),
        tag("h3", "Settings that distinguish the methods"),
        _differing_settings(data.records),
    ]
    return section("reproduce", "Reproduce", *parts)


def _checkout_commands(records: Sequence[Record]) -> list[Html]:
    """Return the commands that check out the code of the runs."""
    commits: Counter[str] = Counter()
    for record in records:
        commits.update({str(part.get("commit") or "") for part in segments(record.versions)})
    commits.pop("", None)
    if not commits:
        return [missing_note("No finished run recorded its git commit.")]
    parts: list[Html] = []
    for commit, number in commits.most_common():
        revision = commit.removesuffix("+changes")
        text = f"Check out the code of {count(number, 'run')}"
        if revision != commit:
            text += " (which had uncommitted changes)"
        parts.append(tag("p", f"{text}:"))
        parts.append(command_block(f"git checkout {shlex.quote(revision)}"))
    return parts


def _run_commands(data: ReportData) -> list[Html]:
    """Return the commands that repeat the runs."""
    if data.sweeps:
        commands = dict.fromkeys(sweep.record.command for sweep in data.sweeps)
        return [tag("p", "Start the runs of each sweep (finished runs are skipped):"), command_block(*commands)]
    paths = [record.path for record in data.records if not record.program]
    paths += [run.path for run in data.collection.unfinished if RunDirectory(run.path).config.exists()]
    if not paths:
        return [missing_note("None of the runs is a run of this package.")]
    command = shlex.join(["python", "-m", "qllm_exp.experiment", display_path(paths[0])])
    return [tag("p", _SINGLE_RUN_TEXT), command_block(command)]


def _differing_settings(records: Sequence[Record]) -> Html:
    """Return the table of settings in which the methods differ."""
    methods = keys.methods(records)
    if len(methods) < 2:
        return missing_note("There is only one method." if methods else "No run has finished.")
    distinct = one_record_per_method(records)
    rows = []
    for key in keys.differing_keys(records):
        if key.startswith(_TASK_KEYS):
            continue
        values = []
        for method in methods:
            method_values = {keys.value(record, key) for record in distinct if record.method == method}
            values.append(sorted(method_values, key=keys.sort_key))
        if len(set(map(repr, values))) > 1:
            rows.append((key, *(", ".join(map(str, method_values)) for method_values in values)))
    if not rows:
        return missing_note("The methods differ only in settings of the environment.")
    caption = "Settings in which the methods differ ('-': not a setting of the method)"
    return table(caption, ("setting", *methods), rows, "plain settings")
