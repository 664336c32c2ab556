"""One HTML page on a sweep, or on any folders of runs, that needs no other file and no network."""

import base64
import hashlib
import html
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.report.figures import drawings
from qllm_exp.results.report.functions import functions
from qllm_exp.results.report.parts import Html, joined, tag
from qllm_exp.results.report.runs import asked, runs
from qllm_exp.results.report.settings import again, costs, versions
from qllm_exp.results.report.subject import ReportData, sweeps_of
from qllm_exp.results.report.tables import ablations, comparisons

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<div class="page">
<header>
{header}
</header>
<nav aria-label="Contents">
{contents}
</nav>
<main id="content">
{main}
</main>
<footer>
{footer}
</footer>
</div>
<script>
{script}</script>
</body>
</html>
"""


def report(
    collection: Collection, folders: Sequence[Path], page: Path, credit: bool = True, typed: Sequence[str] = ()
) -> str:
    """The text of the page.

    Args:
        collection: the runs of the folders.
        page: the folder that the page goes into; links to runs are relative to it.
        credit: whether to draw the credit that functions give along an episode, which takes simulation.
        typed: what the user gave, where it is not these folders: an address that they were read from.
    """
    subject = ReportData(collection, sweeps_of(folders), tuple(typed) or tuple(map(str, folders)), page.absolute())
    parts = [
        ("asked", "What was asked", asked(subject)),
        ("comparison", "Comparison", comparisons(subject)),
        ("ablation", "Ablation", ablations(subject)),
        ("figures", "Figures", drawings(subject)),
        ("functions", "Functions", functions(subject, credit)),
        ("runs", "Runs", runs(subject)),
        ("cost", "Cost", costs(subject)),
        ("versions", "Versions", versions(subject)),
        ("again", "Reproduce", again(subject)),
    ]
    there = [(anchor, words, part) for anchor, words, part in parts if part]
    contents = tag("ol", *(tag("li", tag("a", words, href=f"#{anchor}")) for anchor, words, _ in there))
    style, script = _file("page.css"), _file("page.js")
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return _PAGE.format(
        policy=html.escape(
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"script-src 'sha256-{digest}'"
        ),
        title=html.escape(f"{subject.title}: report"),
        style=style,
        header=_header(subject),
        contents=contents,
        main=joined(part for _, _, part in there),
        footer=tag("p", "Made by qllm_exp from the folders of the runs. All figures can be traced to them."),
        script=script,
    )


def _header(subject: ReportData) -> Html:
    records, rest = subject.collection.finished, subject.collection.unfinished
    each = {"task": keys.tasks(records), "method": keys.methods(records), "seed": {one.seed for one in records}}
    total = len(records) + len(rest)
    figures = [(len(records), f"of {total:,} run{'s' * (total != 1)} finished")]
    figures += [(len(found), f"{what}{'s' * (len(found) != 1)}") for what, found in each.items()]
    shown = (tag("li", tag("strong", f"{number:,}"), " ", tag("span", words)) for number, words in figures)
    made = time.strftime("%Y-%m-%d %H:%M")
    return joined(
        [
            tag("p", "Experiment report", class_="eyebrow"),
            tag("h1", subject.title),
            tag("p", "Cooperative multi-agent reinforcement learning; made ", tag("time", made), "."),
            tag("ul", *shown, class_="figures"),
        ]
    )


def _file(name: str) -> str:
    return resources.files("qllm_exp.results.report").joinpath(name).read_text(encoding="utf-8")
