"""What was asked, what became of it, and every run in a line."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import yaml

from qllm_exp.results.records.collect import ABSENT, Unfinished
from qllm_exp.results.records.reader import Record
from qllm_exp.results.report.parts import LONG, Html, absent, command, facts, folded, joined, section, table, tag
from qllm_exp.results.report.subject import ReportData, shown
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, NEW, QUEUED, RUNNING, STATES, STOPPED
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.tracking.wandb_restore import TOLD
from qllm_exp.utils.text import count, duration

MOST_UNFINISHED = 200  # runs that are told one by one
MOST_RUNS = 2_000  # lines of the table of runs; of more a browser gets slow
MOST_SWEEPS = 20
FINISHED = "finished"
_ORDER = (FAILED, DEAD, STOPPED, RUNNING, QUEUED, NEW, ABSENT)  # what needs a person first
_HEADS = ("run", "task", "method", "seed", "final", "absolute", "env steps", "wall time", "state")


def asked(subject: ReportData) -> Html:
    """The section on the sweeps: their commands, names, tags, when they were started and with which version."""
    if not subject.sweeps:
        what = (
            f"No sweep's record (sweep.json) is in {', '.join(subject.given)}: the runs are taken as they were found."
        )
        return section("asked", "What was asked", tag("p", what), _totals(subject))
    several = subject.sweeps[:MOST_SWEEPS]
    more = len(subject.sweeps) - len(several)
    told = [joined([tag("h3", one.path.name), _sweep(one, subject)]) for one in several]
    left = [absent(f"And {count(more, 'sweep')} more; their sweep.json have the commands.")] * bool(more)
    return section("asked", "What was asked", *told, *left, _totals(subject))


def _sweep(one: Sweep, subject: ReportData) -> Html:
    names = set(one.record.runs)
    versions = Counter(_version(run) for run in subject.collection.finished if run.name in names)
    tags = dict.fromkeys(chain.from_iterable(_tags(one)))
    pairs = [
        ("last started", one.record.started),
        ("runs", f"{len(names):,}"),
        ("tags", joined((tag("span", word, class_="tag") for word in tags), " ")),
        ("launcher", str(one.record.launcher.get("name", ""))),
        ("finished with", "; ".join(f"{words} ({count(many, 'run')})" for words, many in versions.most_common())),
    ]
    return joined([command(one.record.command), facts(pairs)])


def _version(run: Record) -> str:
    of, commit = run.versions.get("qllm_exp"), str(run.versions.get("commit") or "")
    changes = "+changes" * commit.endswith("+changes")
    return f"qllm_exp {of}{f', commit {commit[:10]}{changes}' * bool(commit)}" if of else "a version that is not known"


def _tags(sweep: Sweep) -> Iterator[list[str]]:
    """Of each of the sweep's runs that has a configuration; equal configurations of the sweep are read once."""
    known: dict[str, list[str]] = {}
    for directory in sweep.directories:
        try:
            _, found, rest = directory.config.read_text(encoding="utf-8").partition("\nsweep:\n")
        except (OSError, UnicodeDecodeError):
            continue
        lines = rest.split("\n")
        block = "\n".join(lines[: next((at for at, one in enumerate(lines) if one[:1] not in (" ", "-")), None)])
        if found and block not in known:
            try:
                known[block] = [str(word) for word in (yaml.safe_load(block) or {}).get("tags") or []]
            except (yaml.YAMLError, AttributeError, TypeError):
                known[block] = []
            yield known[block]


def _totals(subject: ReportData) -> Html:
    """How many runs stand how, as a bar and in words."""
    counts = Counter({FINISHED: len(subject.collection.finished)})
    counts.update(one.state for one in subject.collection.unfinished)
    kinds = [(state, counts[state]) for state in (FINISHED, *_ORDER) if counts[state]]
    parts = (tag("span", class_=f"bar {state}", style=f"flex-grow:{many}") for state, many in kinds)
    words = (tag("li", badge(state), f" {many:,}") for state, many in kinds)
    return joined(
        [
            tag("h3", "What ran"),
            tag("div", *parts, class_="bars", aria_hidden="true"),
            tag("ul", *words, class_="counts"),
            *_unfinished(subject),
        ]
    )


def badge(state: str) -> Html:
    """A state as a word with its colour."""
    return tag("span", state, class_=f"badge {state if state in (FINISHED, ABSENT, *STATES) else ''}".rstrip())


def _unfinished(subject: ReportData) -> Iterator[Html]:
    """Every run that is not finished: why, its log, and the command that goes on with it."""
    runs = sorted(subject.collection.unfinished, key=lambda one: (_ORDER.index(one.state), one.name))
    if not runs:
        return
    yield tag("h3", "Not finished")
    yield from _retry(subject)
    items = [_one(one, subject) for one in runs[:MOST_UNFINISHED]]
    listed = tag("ul", *items, class_="unfinished")
    yield folded(f"All {len(items)}", listed) if len(items) > 10 else listed
    if len(runs) > len(items):
        where = shlex.join(subject.given)
        yield absent(f"{len(runs) - len(items):,} more are not told one by one: python -m launch.status {where} --all")


def _retry(subject: ReportData) -> Iterator[Html]:
    for sweep in subject.sweeps:
        states = {one.state for one in subject.collection.unfinished if one.name in set(sweep.record.runs)}
        where = shlex.quote(shown(sweep.path))
        if states & {FAILED, DEAD}:
            yield tag("p", f"Run again what failed in {sweep.path.name}:")
            yield command(f"python -m launch.retry {where}")
        if ABSENT in states:
            yield tag("p", f"Run what {sweep.path.name} lacks, by its own command:")
            yield command(sweep.record.command)
        elif states & {STOPPED, NEW}:
            yield tag("p", f"Go on with what was stopped or not started in {sweep.path.name}:")
            yield command(f"python -m launch.retry {where} --missing")


def _one(one: Unfinished, subject: ReportData) -> Html:
    name = tag("a", one.name, href=subject.link(one.path)) if one.path.is_dir() else tag("span", one.name)
    log = _log(one, subject)
    pairs = [
        ("why", one.why),
        ("log", tag("a", shown(log), href=subject.link(log)) if log else ""),
        ("go on", _go_on(one, subject)),
    ]
    return tag("li", tag("p", badge(one.state), " ", tag("span", name, class_="name")), facts(pairs))


def _log(one: Unfinished, subject: ReportData) -> Path | None:
    """What the run's process printed, its own log, or what its job printed: the first of them that is there."""
    directory, sweep = RunDirectory(one.path), subject.sweep_of(one.name)
    job = sweep.job_log(one.name) if sweep is not None else None
    return next((log for log in (directory.console, directory.log, job) if log is not None and log.exists()), None)


def _go_on(one: Unfinished, subject: ReportData) -> Html:
    if one.state in (RUNNING, QUEUED):
        return joined(["nothing to do: ", "it runs" if one.state == RUNNING else "its turn comes"])
    if (one.path / TOLD).exists():
        return joined(["where it was run: this folder is what Weights & Biases knows of it"])
    if RunDirectory(one.path).config.exists():
        return tag("code", shlex.join(["python", "-m", "qllm_exp.experiment", shown(one.path)]))
    sweep = subject.sweep_of(one.name)
    return tag("code", sweep.record.command) if sweep is not None else joined(["the command that made the folder"])


def runs(subject: ReportData) -> Html:
    """The section with a line for every run."""
    records, rest = subject.records, subject.collection.unfinished
    lines = [*(_finished_line(one, subject) for one in records[:MOST_RUNS])]
    lines += [_unfinished_line(one, subject) for one in rest[: MOST_RUNS - len(lines)]]
    total = len(records) + len(rest)
    caption = f"{count(total, 'run')}: returns of the last evaluation (final) and of the best parameters (absolute)"
    whole = table(caption, _HEADS, lines, "plain sortable")
    where = shlex.join(subject.given)
    left = tag(
        "p",
        f"The page lists {len(lines):,} of {total:,} runs, finished ones first. All final returns, in full: ",
        tag("code", f"python -m qllm_exp.results table {where} --rows env,task,method --cols seed -o runs.csv"),
        class_="absent",
    )
    body = whole if total <= LONG else folded(f"All {len(lines):,} runs" if total == len(lines) else "Runs", whole)
    return section("runs", "Runs", *[left] * (len(lines) < total), body)


def _finished_line(one: Record, subject: ReportData) -> Sequence[str]:
    final, absolute = (float(one.result.get(key, "nan")) for key in ("final_return", "absolute_return"))
    steps = one.result.get("env_steps", one.steps[-1])
    return (
        _run_link(one.path, subject),
        one.task,
        one.method,
        _number(one.seed, str(one.seed)),
        _number(final, f"{final:.3f}"),
        _number(absolute, f"{absolute:.3f}"),
        _number(steps, f"{steps:,}"),
        _number(one.wall_s, "-" if one.wall_s != one.wall_s else duration(one.wall_s)),
        tag("td", badge(FINISHED)),
    )


def _unfinished_line(one: Unfinished, subject: ReportData) -> Sequence[str]:
    link = _run_link(one.path, subject) if one.path.is_dir() else tag("span", one.name)
    seed = _number(one.seed, str(one.seed)) if one.seed is not None else tag("td", "-")
    return link, one.task, one.method, seed, *[tag("td", "-", class_="number")] * 4, tag("td", badge(one.state))


def _run_link(path: Path, subject: ReportData) -> Html:
    return tag("a", path.name, href=subject.link(path))


def _number(value: object, shown_as: str) -> Html:
    """A cell that sorts by its number."""
    return tag("td", shown_as, class_="number", data_v=value)
