"""The page of a search: its best function beside the baselines, the family tree, what was not trained, and the costs.

The layout is that of the report of a sweep (results/report). The page can be written at any time, also while the search runs.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qllm_exp.config.schema import RunConfig
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.results.figures.per_task import curves
from qllm_exp.results.records.collect import collect
from qllm_exp.results.report.functions import credit_of_run, explanation, source_details
from qllm_exp.results.report.page import page_header, render_page
from qllm_exp.results.report.parts import (
    Html,
    command_block,
    concat,
    definition_list,
    details,
    missing_note,
    or_missing_note,
    scroll_box,
    section,
    table,
    tag,
)
from qllm_exp.results.report.prose import prose
from qllm_exp.results.report.report_data import display_path
from qllm_exp.results.report.svg import render_svg, svg_figure
from qllm_exp.search.archive import BASELINES, PLAIN_SUM, Archive, Member, stage_returns
from qllm_exp.search.behaviour import Behaviours, distance
from qllm_exp.search.differences import describe_difference
from qllm_exp.search.family_tree import family_tree
from qllm_exp.search.models import candidate_of
from qllm_exp.search.reflection import BASELINE_NAMES
from qllm_exp.search.search_directory import Row, SearchDirectory, cost_of
from qllm_exp.utils.text import count, inert_lines

MAX_SOURCES = 100  # functions whose source is on the page
_CONTEXT = 2  # unchanged lines around a change of a source
_SELECTION_NOTE = (
    "These returns choose functions, with seeds that no table uses. The best of many is higher here than with new seeds, so "
    "judge the function by runs with seeds of their own (see Reproduce)."
)


@dataclass(frozen=True)
class _Change:
    """How a function differs from the function that it was to improve.

    Attributes:
        line: the difference in words; what it reads of the state for a first function.
        distance: mean difference of the credit of an agent; 1 is the credit in the plain sum.
    """

    line: str
    distance: float


class _Search:
    """The data of the page.

    Args:
        directory: the directory of the search.

    Attributes:
        directory: the directory of the search.
        run: its configuration.
        archive: its functions.
        functions: the functions by key.
        results: results of the trainings by name of the run.
        baselines: mean returns by baseline and stage.
    """

    def __init__(self, directory: SearchDirectory) -> None:
        self.directory = directory
        self.run: RunConfig = directory.read_config()
        self.options = self.run.tfcaf.search
        self.archive = Archive(directory.rows, self.options)
        self.functions = {member.key: directory.function(member.key) for member in self.archive.members}
        self.results = directory.results()
        self.baselines = {name: returns for name in BASELINES if (returns := stage_returns(directory.rows, name))}

    @property
    def task(self) -> str:
        """Environment and task."""
        return f"{self.run.env.name}/{self.run.env.task}"

    @property
    def finished(self) -> bool:
        """Whether the function of the search is stored."""
        return provide.function_store(self.run).path(self.directory.key).exists()

    @property
    def best(self) -> Member | None:
        """The best function; None if no training of a function has finished, or all have diverged."""
        trained = [member for member in self.archive.members if member.score[1] > -math.inf]
        return self.archive.best if trained else None

    def stage(self, number: int) -> str:
        """Return the name of a stage, by its environment steps."""
        return f"{self.options.steps[number]:,} steps"

    def name(self, key: str) -> str:
        """Return the short name of a function."""
        return next((member.label for member in self.archive.members if member.key == key), key[:12])

    def parents(self, member: Member) -> str:
        """Return the names of the functions that the coder saw, e.g. '1.2 (also saw 1.1)'; '' for a first function."""
        names = [self.name(key) for key in member.parents]
        return f"{names[0]} (also saw {', '.join(names[1:])})" if names[1:] else "".join(names)


def search_report(path: Path, credit: bool = True) -> str:
    """Return the HTML text of the page of a search.

    Args:
        path: the directory of the search.
        credit: whether to draw the credit of the best function along an episode, which takes simulation.

    Raises:
        UserError: this is not the directory of a search, or a file of it cannot be read.
    """
    search = _Search(SearchDirectory(path))
    changes = _changes(search)
    sections = [
        ("result", "Result", _result_section(search)),
        ("family", "Family", _family_section(search, changes)),
        ("best", "Best function", _best_section(search, credit)),
        ("stages", "Stages", _stages_section(search)),
        ("refused", "Not trained", _refused_section(search)),
        ("cost", "Cost", _cost_section(search)),
        ("sources", "Sources", _sources_section(search)),
        ("reproduce", "Reproduce", _reproduce_section(search)),
    ]
    footer = "Generated by qllm_exp from the directory of the search, to which every number can be traced."
    return render_page(path.absolute().name, _header(search), sections, footer)


def _header(search: _Search) -> Html:
    cost, calls = cost_of(search.results.values()), search.directory.of_kind("call")
    written = {row["generation"] for row in search.directory.of_kind("candidate")}
    totals = [
        (f"{len(written):,}", f"of {count(search.options.generations, 'generation')}"),
        (f"{len(search.archive.members):,}", "functions trained" if search.archive.members else "functions"),
        (f"{len(calls):,}", "calls"),
        (_dollars(calls), "US dollars"),
        (f"{cost['env_steps']:,}", "environment steps"),
        (f"{cost['core_hours']:.2f}", "core hours"),
    ]
    status = "finished" if search.finished else "not finished"
    summary = f"{search.task}; {provide.describe_procedure(search.run.tfcaf)}; {status}"
    return page_header("Search report", search.directory.path.absolute().name, summary, totals)


def _dollars(calls: Sequence[Row]) -> str:
    """Return the price of calls; '?' if a price is not known."""
    prices = [row["cost_usd"] for row in calls if row["answer"]]
    return "?" if None in prices else f"{sum(prices):.4f}"


def _result_section(search: _Search) -> Html:
    """Return the best function beside the baselines, in words and as learning curves."""
    best = search.best
    if best is None:
        diverged = any(member.returns for member in search.archive.members)
        text = "All functions that were trained so far have diverged." if diverged else "No training has finished yet."
        return section("result", "Result", missing_note(text))
    stage, value = best.score
    comparisons = [
        f"{abs(value - returns[stage]):.3f} {'more than' if value > returns[stage] else 'less than'} {BASELINE_NAMES[name]}"
        if value != returns[stage]
        else f"as much as {BASELINE_NAMES[name]}"
        for name, returns in search.baselines.items()
        if stage in returns and returns[stage] > -math.inf
    ]
    beside = f": {' and '.join(comparisons)}, with the same steps and seeds" if comparisons else ""
    link = tag("a", f"Function {best.label}", href="#best")
    text = concat(
        [
            link,
            f" has the best return, {value:.3f} after {search.stage(stage)} (mean of {_seeds(search, stage)}){beside}.",
        ]
    )
    figure = or_missing_note("learning curves", lambda: _learning_curves(search, best))
    return section(
        "result",
        "Result",
        tag("p", text),
        tag("p", _SELECTION_NOTE, class_="note"),
        tag("div", figure, class_="panels whole"),
    )


def _seeds(search: _Search, stage: int) -> str:
    return count(search.options.seeds[stage], "seed")


def _learning_curves(search: _Search, best: Member) -> Html:
    """Return the learning curves of the best function and of the baselines in the last stage of the function."""
    stage = best.score[0]
    rows = search.directory.of_kind("training", stage=stage)
    paths = [
        search.directory.run(row["run"]).path
        for row in rows
        if row["function"] in (best.key, *BASELINES) and row["run"] in search.results
    ]
    if not paths:
        raise UserError(f"the run directories of the trainings are not in {display_path(search.directory.runs)}")
    records = collect(paths).finished
    label = f"Learning curves of function {best.label} (tfcaf) and of the baselines: evaluation return against environment steps"
    return svg_figure(render_svg(lambda path: curves(records, path)), "curves", label)


def _changes(search: _Search) -> dict[str, _Change]:
    """Return how each function differs from its parent, by key; {} if the task cannot be opened here."""
    members = search.archive.members
    if not members:
        return {}
    try:
        with provide.small_environment(search.run) as env:
            enforce = provide.igm_enforced(search.run, env)
            behaviours = Behaviours(env, enforce, search.options.tolerance)
    except UserError:
        return {}
    programs = {member.key: search.functions[member.key].program for member in members}
    affine = {key: behaviours.is_affine(program) for key, program in programs.items()}
    behaviour = {key: behaviours.of(program, affine[key]) for key, program in programs.items()}
    read = {key: behaviours.fields_read(program, affine[key]) for key, program in programs.items()}
    changes = {}
    for member in members:
        parent = member.parents[0] if member.parents and member.parents[0] in programs else ""
        if parent:
            line = describe_difference(programs[parent], programs[member.key], read[parent], read[member.key])
            other = behaviour[parent]
        else:
            line = f"reads {', '.join(read[member.key])}" if read[member.key] else "reads nothing of the state"
            other = behaviours.plain_sum()
        changes[member.key] = _Change(line, distance(behaviour[member.key], other))
    return changes


def _family_section(search: _Search, changes: Mapping[str, _Change]) -> Html:
    """Return the family tree and the table of all functions."""
    members = search.archive.members
    if not members:
        return Html("")
    refused: dict[int, int] = {}
    for row in search.directory.of_kind("candidate", key="", tuned=False):
        refused[row["generation"]] = refused.get(row["generation"], 0) + 1
    plain_sum = search.baselines.get(PLAIN_SUM, {})
    tree = _tree_figure(search, plain_sum, refused)
    stages = range(len(search.options.steps))
    heads = ["function", "improved from", "what changed", "credit moved", *(search.stage(stage) for stage in stages)]
    baselines = [
        (BASELINE_NAMES[name], "", "", "", *(_return_cell(returns.get(stage)) for stage in stages))
        for name, returns in search.baselines.items()
    ]
    rows = [*baselines, *(_member_row(search, member, changes.get(member.key), plain_sum) for member in members)]
    note = (
        "What changed: operations, numbers and fields of the state, from the two tensor programs; for a first function, what it "
        "reads of the state. Credit moved: mean difference of the credit of an agent on the probe states from the function that "
        "was to be improved, or from the plain sum; 1 is the credit of an agent in the plain sum. Returns: mean over the seeds of "
        "a stage, bold where above the plain sum."
    )
    caption = f"{count(len(members), 'function')}: return after each stage"
    content = table(caption, heads, rows, "plain sortable functions")
    return section("family", "Family", tree, content, tag("p", note, class_="note"))


def _tree_figure(search: _Search, plain_sum: Mapping[int, float], refused: Mapping[int, int]) -> Html:
    """Return the family tree with its caption.

    Args:
        search: the data of the page.
        plain_sum: return of the plain sum by stage.
        refused: number of refused candidates by generation.
    """
    svg = family_tree(search.archive.members, search.best, plain_sum, search.options.steps, refused)
    difference = ", and in brackets the difference to the plain sum with the same steps and seeds" if plain_sum else ""
    caption = (
        f"Who descends from whom. Each box has the return after the last stage of the function{difference}; a dot stands for a "
        "stage. The functions of an island are beside each other. Solid lines: from the function that was to be improved; dashed: "
        "from others that the coder saw. The lineage of the best function is emphasised."
    )
    return tag("figure", scroll_box("Family tree", svg), tag("figcaption", caption), class_="family")


def _member_row(
    search: _Search, member: Member, change: _Change | None, plain_sum: Mapping[int, float]
) -> Sequence[str]:
    """Return the row of a function."""
    is_best = member is search.best
    name = concat([member.label, " ", tag("span", "best", class_="badge finished")]) if is_best else member.label
    moved = tag("td", f"{change.distance:.3f}", class_="number", data_v=change.distance) if change else "-"
    cells = [
        _return_cell(member.returns.get(stage), plain_sum.get(stage)) for stage in range(len(search.options.steps))
    ]
    label = tag("span", name, id=f"function-{member.key[:12]}")
    return label, search.parents(member) or "first function", change.line if change else "-", moved, *cells


def _return_cell(value: float | None, baseline: float | None = None) -> Html:
    """Return the cell of a return, bold where it is above a baseline; '-' for a stage that was not reached."""
    if value is None:
        return tag("td", "-", class_="number", data_v=-math.inf)
    text = "diverged" if value == -math.inf else f"{value:.3f}"
    content = tag("strong", text) if baseline is not None and value > baseline else text
    return tag("td", content, class_="number", data_v=value)


def _best_section(search: _Search, credit: bool) -> Html:
    """Return the best function: what the model wrote about it, its source and its credit along an episode."""
    best = search.best
    if best is None:
        return Html("")
    function = search.functions[best.key]
    stage, _ = best.score
    rows = search.directory.of_kind("training", function=best.key, stage=stage)
    finished = [row["run"] for row in rows if search.directory.run(row["run"]).policy.exists()]
    parts = [
        tag("h3", f"Function {best.label}"),
        _explanation(search, best, function),
        definition_list(
            [
                ("improved from", search.parents(best)),
                ("written by", _model(search, best)),
                ("remarks", function.verdict),
                ("key", tag("code", best.key)),
                ("file", tag("code", display_path(search.directory.function_path(best.key)))),
            ]
        ),
        source_details(function),
    ]
    if not finished:
        parts.append(missing_note("No credit figure: there is no policy of a training with this function."))
    elif credit:
        parts.append(credit_of_run(search.directory.run(finished[0]).path, True, search.task, "credit"))
    else:
        parts.append(missing_note("No credit figure: disabled by --no-credit."))
    return section("best", "Best function", *parts)


def _explanation(search: _Search, member: Member, function: StoredFunction) -> Html:
    """Return what the model wrote about a function beside its source."""
    text = explanation(replace(function, transcript=tuple(search.directory.of_kind("call"))))
    return (
        tag("blockquote", prose(text)) if text else missing_note(f"There is no explanation of function {member.label}.")
    )


def _model(search: _Search, member: Member) -> str:
    """Return the language model that wrote a function, or its parent if its constants were trained."""
    if member.tuned:
        return f"training: the constants of function {search.name(member.parents[0])}"
    calls = [
        row for row in search.directory.of_kind("call") if candidate_of(row["call"]) == member.name and row["answer"]
    ]
    return str(calls[-1].get("model", "")) if calls else ""


def _stages_section(search: _Search) -> Html:
    """Return the stages with the functions that each trained, and what it chose."""
    rows = []
    for number in range(len(search.options.steps)):
        trained = [member for member in search.archive.members if number in member.returns]
        if not trained:
            rows.append((search.stage(number), _seeds(search, number), "0", "-", "-", "-", *("-" for _ in BASELINES)))
            continue
        values = [member.returns[number] for member in trained]
        rows.append(
            (
                search.stage(number),
                _seeds(search, number),
                str(len(trained)),
                str(sum(number + 1 in member.returns for member in trained))
                if number + 1 < len(search.options.steps)
                else "-",
                str(values.count(-math.inf)),
                _return_cell(max(values)),
                *(_return_cell(search.baselines.get(name, {}).get(number)) for name in BASELINES),
            )
        )
    heads = (
        "stage",
        "seeds",
        "functions",
        "went on",
        "diverged",
        "best return",
        *(BASELINE_NAMES[name] for name in BASELINES),
    )
    kept = f"The better {search.options.kept:.0%} of each generation go on to the next stage, at least one function."
    return section(
        "stages",
        "Stages",
        table("Stages of the trainings", heads, rows, "plain numbers"),
        tag("p", kept, class_="note"),
    )


def _refused_section(search: _Search) -> Html:
    """Return the candidates that were not trained, with the reasons, and how many answers computed what was known."""
    candidates = search.directory.of_kind("candidate")
    if not candidates:
        return Html("")
    refused = [row for row in candidates if not row["key"]]
    calls = search.directory.of_kind("call")
    equal = [row for row in calls if row["outcome"].startswith("refused (novelty)")]
    repaired = {candidate_of(row["call"]) for row in equal} - {row["name"] for row in refused}
    rewritten = f"; for {count(len(repaired), 'candidate')} the model then wrote another function" if repaired else ""
    sentences = [
        f"{count(len(refused), 'candidate')} of {len(candidates)} not trained.",
        f"{count(len(equal), 'answer')} computed the same as the plain sum or as an earlier function, which the probe states "
        f"showed before any training{rewritten}.",
    ]
    parts = [tag("p", " ".join(sentences))]
    if refused:
        heads = ("candidate", "last refusal")
        rows = [(_candidate_name(row), row["reason"] or "-") for row in refused]
        parts.append(table("Candidates that were not trained", heads, rows, "plain wraps"))
    return section("refused", "Not trained", *parts)


def _candidate_name(row: Row) -> str:
    return f"{row['generation']} tuned" if row["tuned"] else f"{row['generation']}.{row['name'].rpartition('-')[2]}"


def _cost_section(search: _Search) -> Html:
    """Return calls, tokens, dollars, environment steps and core hours, by generation and in all."""
    directory, results = search.directory, search.results
    trainings = directory.of_kind("training")
    generation_of = {member.key: member.generation for member in search.archive.members}
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in trainings:
        group = f"generation {generation_of[row['function']]}" if row["function"] in generation_of else "baselines"
        runs.setdefault(group, []).append(results.get(row["run"], {}))
    logged = {row["run"] for row in trainings}
    others = [result for name, result in results.items() if name not in logged]
    calls = directory.of_kind("call")
    generations = sorted({row["generation"] for row in directory.of_kind("question")})
    rows = [
        _cost_row(
            f"generation {number}",
            [row for row in calls if row["generation"] == number],
            runs.get(f"generation {number}", []),
        )
        for number in generations
    ]
    if "baselines" in runs:
        rows.append(_cost_row(" and ".join(BASELINE_NAMES[name] for name in search.baselines), [], runs["baselines"]))
    if others:
        rows.append(_cost_row("constants, and trainings of an open step", [], others))
    rows.append(_cost_row("all", calls, list(results.values())))
    heads = ("part", "calls", "tokens in", "tokens out", "US dollars", "trainings", "environment steps", "core hours")
    note = "Core hours: sum of the wall time of the trainings, each on one core or GPU, evaluation included."
    return section(
        "cost", "Cost", table("Cost of the search", heads, rows, "plain numbers costs"), tag("p", note, class_="note")
    )


def _cost_row(name: str, calls: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return the row of a part of the costs."""
    cost = cost_of(result for result in results if result)
    texts = [
        *(
            (
                f"{len(calls):,}",
                *(f"{sum(row[key] for row in calls):,}" for key in ("tokens_in", "tokens_out")),
                _dollars(calls),
            )
            if calls
            else "----"
        ),
        f"{cost['trainings']:,}",
        f"{cost['env_steps']:,}",
        f"{cost['core_hours']:.2f}",
    ]
    return name, *(tag("td", text, class_="number") for text in texts)


def _sources_section(search: _Search) -> Html:
    """Return all functions: what the model wrote about each, and the lines that it changed."""
    members = search.archive.members
    if not members:
        return Html("")
    parts: list[Html] = [
        tag(
            "p",
            "The lines that each function changed in the source of the function that it was to improve; of a first function, its "
            "whole source.",
        )
    ]
    for member in members[:MAX_SOURCES]:
        function = search.functions[member.key]
        parent = search.functions.get(member.parents[0]) if member.parents else None
        if parent is None:
            content = source_details(function)
        elif parent.source == function.source:
            content = tag("p", function.verdict)
        else:
            content = tag(
                "pre",
                tag("code", *_diff(parent.source, function.source)),
                class_="source diff",
                tabindex=0,
                aria_label="changed lines",
            )
        title = f"Function {member.label}" + (f", from {search.name(member.parents[0])}" if member.parents else "")
        parts.append(details(title, _explanation(search, member, function), content))
    hidden, folder = len(members) - MAX_SOURCES, display_path(search.directory.path / "functions")
    if hidden > 0:
        parts.append(missing_note(f"{count(hidden, 'more function')} not shown; their files are in {folder}."))
    return section("sources", "Sources", *parts)


def _diff(before: str, after: str) -> Iterator[Html]:
    """Yield the lines of the difference of two sources, those that are added or removed in their colours."""
    old, new = (inert_lines(source.strip()).split("\n") for source in (before, after))
    classes = {"+": "added", "-": "removed", "@": "c"}
    for line in list(difflib.unified_diff(old, new, lineterm="", n=_CONTEXT))[3:]:  # without the heads
        text = "..." if line.startswith("@") else line
        yield tag("span", text, class_=classes.get(line[:1])) if line[:1] in classes else tag("span", text)
        yield Html("\n")


def _reproduce_section(search: _Search) -> Html:
    """Return the commands that continue the search, write this page and judge the function."""
    path, run = display_path(search.directory.path), search.run
    parts = [
        tag("p", "Continue the search (what is finished is not repeated), and write this page:"),
        command_block(search.directory.resume_command, f"python -m qllm_exp.tfcaf report {path}"),
    ]
    if search.best is not None:
        file = display_path(search.directory.function_path(search.best.key))
        task = f"env={run.env.name} env.task={run.env.task}"
        parts += [
            tag(
                "p",
                "Judge the best function beside the baselines, with seeds that the search has not seen; add the options of your "
                "trainings:",
            ),
            command_block(
                f"python -m qllm_exp -m {task} mixer=tfcaf mixer.file={file} seed=0-4",
                f"python -m qllm_exp -m {task} mixer=vdn,qmix seed=0-4",
                f"python -m qllm_exp.results table {run.dir} --only env.task={run.env.task}",
            ),
        ]
    return section("reproduce", "Reproduce", *parts)
