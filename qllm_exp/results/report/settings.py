"""What it cost, by which versions it was run, in which settings methods differ, and how to do it again."""

import math
import shlex
from collections import Counter, defaultdict

from qllm_exp.results.records import keys
from qllm_exp.results.report.parts import Html, absent, command, facts, joined, section, table, tag
from qllm_exp.results.report.subject import ReportData, distinct, shown
from qllm_exp.results.tables.costs import FIGURES
from qllm_exp.runs.versions import OF_THE_MACHINE
from qllm_exp.utils.text import count, duration

_ALONE = (
    "No sweep's command is known. In a copy of a run's folder that has nothing but its config.yaml (and its tfcaf.json, if it has "
    "one), this runs it from the start:"
)
_OF_A_TASK = ("env.", "seed")


def costs(subject: ReportData) -> Html:
    """The section on what all finished runs took together."""
    records = subject.records
    if not records:
        return section("cost", "Cost", absent("Nothing is finished, so nothing is counted."))
    known = [one.wall_s for one in records if math.isfinite(one.wall_s)]
    steps = sum(int(one.result.get("env_steps", one.steps[-1])) for one in records)
    asked = {words: figure(records) for words, figure in FIGURES["cost"].items()}
    unknown = len(records) - len(known)
    pairs = [
        ("finished runs", f"{len(records):,}"),
        ("environment steps", f"{steps:,}"),
        ("wall time", duration(sum(known)) + f" ({count(unknown, 'run')} did not say)" * bool(unknown)),
        *(
            (words, "no function" if said == "-" else "no price known" if said == "?" else said)
            for words, said in asked.items()
        ),
    ]
    note = "Wall time: the sum over runs, training and evaluation. LLM calls: of each function once, whatever the number of seeds."
    return section("cost", "Cost", facts(pairs), tag("p", note, class_="note"))


def versions(subject: ReportData) -> Html:
    """The section on all versions of the finished runs; what differs between them is pointed out."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    silent = 0
    for one in subject.records:
        silent += not one.versions
        for name, said in one.versions.items():
            if name not in OF_THE_MACHINE:  # a report goes to people whom that is no concern of
                found[name][str(said)] += 1
    if not found:
        return section("versions", "Versions", absent("No finished run says by which versions it was run."))
    rows = []
    for name, values in found.items():
        lacking = len(subject.records) - silent - sum(values.values())
        words = [
            f"{value or 'none'}" + f" ({count(many, 'run')})" * (len(values) > 1)
            for value, many in values.most_common()
        ]
        words += [f"not said ({count(lacking, 'run')})"] * bool(lacking)
        differs = len(words) > 1
        mark = tag("span", "differs", class_="badge stopped") if differs else ""
        rows.append((name, joined([tag("div", word) for word in words]), mark))
    differing = [name for name, _, mark in rows if mark]
    lead = f"Not the same in all runs: {', '.join(differing)}." if differing else "The same in all finished runs."
    more = f" {count(silent, 'run')} did not say." if silent else ""
    whole = table("Versions of the finished runs", ("what", "version", "remark"), rows, "plain wraps")
    return section("versions", "Versions", tag("p", lead + more), whole)


def again(subject: ReportData) -> Html:
    """The section on how to do it again, and what tells the methods apart."""
    parts: list[str] = []
    commits = Counter(str(one.versions.get("commit") or "") for one in subject.records)
    commits.pop("", None)
    for commit, many in commits.most_common():
        clean = commit.removesuffix("+changes")
        beside = "; files differed from the commit" * (clean != commit)
        parts += [tag("p", f"The code of {count(many, 'run')}{beside}:"), command(f"git checkout {shlex.quote(clean)}")]
    if not commits:
        parts.append(absent("No finished run knows its git commit."))
    if subject.sweeps:
        parts += [tag("p", "The runs, by the command of each sweep; what is finished is not run again:")]
        parts += [command(*dict.fromkeys(one.record.command for one in subject.sweeps))]
    else:
        paths = [*(one.path for one in subject.records), *(one.path for one in subject.collection.unfinished)]
        parts += [tag("p", _ALONE), command(shlex.join(["python", "-m", "qllm_exp.experiment", shown(paths[0])]))]
    where = shlex.join(subject.given)
    parts += [
        tag("p", "The tables and this page, from the folders:"),
        command(f"python -m qllm_exp.results table {where}", f"python -m qllm_exp.results report {where}"),
        tag("h3", "What tells the methods apart"),
        _settings(subject),
    ]
    return section("again", "Reproduce", *parts)


def _settings(subject: ReportData) -> Html:
    records = subject.records
    names = keys.methods(records)
    if len(names) < 2:
        return absent("One method only." if names else "No run is finished.")
    each = distinct(records)
    rows = []
    for key in keys.differing(records):
        if key.startswith(_OF_A_TASK):
            continue
        values = {
            name: sorted({keys.value(one, key) for one in each if one.method == name}, key=keys.sort_key)
            for name in names
        }
        if len(set(map(repr, values.values()))) > 1:
            rows.append((key, *(", ".join(map(str, values[name])) for name in names)))
    if not rows:
        return absent("No setting but those of the environment.")
    return table("Settings in which methods differ ('-': the method has none)", ("setting", *names), rows)
