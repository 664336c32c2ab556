"""The credit-assignment functions of the runs: their explanation, source, origin and credit."""

import ast
import hashlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qllm_exp.credit import stored_function
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import FUNCTION
from qllm_exp.results.report.credit import credit_figure
from qllm_exp.results.report.parts import Html, concat, definition_list, details, missing_note, section, tag
from qllm_exp.results.report.prose import prose
from qllm_exp.results.report.python import highlight
from qllm_exp.results.report.report_data import ReportData, display_path
from qllm_exp.results.report.svg import svg_figure
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import REPORT, search_name
from qllm_exp.utils.text import count

MAX_FUNCTIONS = 50  # functions in a page
MAX_FIGURES = 12  # credit figures in a page
MAX_OPEN_LINES = 24  # a longer source is collapsed
_CODE_BLOCK = re.compile(r"^(```+|~~~+).*?^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass
class FunctionUse:
    """A function, and the runs that use it on one task.

    Attributes:
        task: the task of the runs.
        digits: how tables name the function (mixer.function); '' if no run has finished.
        finished: directories of the finished runs.
        unfinished: directories of the other runs.
        methods: names of the methods of the finished runs, as keys.
    """

    task: str
    digits: str = ""
    finished: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    methods: dict[str, None] = field(default_factory=dict)

    @property
    def first_run(self) -> Path:
        """Directory of the first run, a finished one if there is any."""
        return (self.finished or self.unfinished)[0]


def function_uses(data: ReportData) -> list[FunctionUse]:
    """Return the functions of all runs by task; equal files are one function."""
    uses: dict[tuple[str, str], FunctionUse] = {}
    for record in data.records:
        digest = _digest(record.path)
        if digest:
            new_use = FunctionUse(record.task, str(record.settings.get(FUNCTION, "")))
            use = uses.setdefault((record.task, digest), new_use)
            use.finished.append(record.path)
            use.methods[record.method] = None
    for run in data.collection.unfinished:
        digest = _digest(run.path)
        if digest:
            uses.setdefault((run.task, digest), FunctionUse(run.task)).unfinished.append(run.path)
    return list(uses.values())


def functions_section(data: ReportData, draw_credit: bool) -> Html:
    """Return the section on the functions; '' if no run uses one.

    Args:
        data: the data of the report.
        draw_credit: whether to draw the credit along an episode, which takes seconds for each function.
    """
    uses = function_uses(data)
    if not uses:
        return Html("")
    articles = []
    for number, use in enumerate(uses[:MAX_FUNCTIONS], 1):
        article_parts = _function_parts(use, number, data, len(uses), draw_credit)
        articles.append(tag("article", *article_parts, id=f"function-{number}"))
    introduction = (
        f"{count(len(uses), 'function')} that a language model wrote, or the user provided, in place of a trained mixing network: "
        "Q_tot = n f(q, s). The credit of an agent is the derivative of Q_tot with respect to its individual Q; 1 is equal credit."
    )
    parts = [tag("p", introduction), *articles]
    hidden = len(uses) - len(articles)
    if hidden:
        parts.append(
            missing_note(
                f"{count(hidden, 'more function')} not shown. To show one: "
                "python -m qllm_exp.tfcaf show RUN_FOLDER/tfcaf.json."
            )
        )
    return section("functions", "Credit-assignment functions", *parts)


def explanation(function: StoredFunction) -> str:
    """Return what the model wrote about the function beside its source; else its docstring; '' if there is neither."""
    source = function.source.strip()
    for row in reversed(function.transcript):
        answer = row.get("answer")
        if isinstance(answer, str) and source and source in answer:
            text = _CODE_BLOCK.sub("", answer).strip()
            if text and source not in text:
                return text
    try:
        definitions = [node for node in ast.parse(function.source).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError):
        return ""
    docstrings = (ast.get_docstring(node) or "" for node in definitions if node.name == function.function)
    return next(docstrings, "")


def provenance_text(function: StoredFunction) -> str:
    """Return who wrote a function, when and how, in one sentence."""
    facts = {key: str(value) for key, value in function.provenance.items()}
    author = facts.pop("model", "") or "an unknown author"
    procedure = facts.pop("procedure", "")
    text = f"Imported from {author}" if procedure == "imported" else f"Written by {author}"
    if facts.get("date"):
        text += f" on {facts.pop('date')}"
    if procedure not in ("", "imported"):
        text += f", in {procedure}"
    return text + "".join(f"; {key} {value}" for key, value in facts.items() if value) + "."


def cost_text(cost: Mapping[str, Any]) -> str:
    """Return '4 calls, 12,345 tokens, 0.0123 USD'; '' for a function without calls."""
    calls, usd = cost.get("calls"), cost.get("usd")
    if not isinstance(calls, int) or not calls:
        return ""
    tokens = sum(number for number in (cost.get("tokens_in"), cost.get("tokens_out")) if isinstance(number, int))
    parts = [count(calls, "call")]
    if tokens:
        parts.append(f"{tokens:,} tokens (estimated)" if "usage" in cost else f"{tokens:,} tokens")
    parts.append(f"{usd:.4f} USD" if isinstance(usd, int | float) else "price unknown")
    return ", ".join(parts)


def _function_parts(use: FunctionUse, number: int, data: ReportData, total: int, draw_credit: bool) -> Iterator[Html]:
    """Yield the parts of the article on a function.

    Args:
        use: the function and its runs.
        number: its number on the page, from 1.
        data: the data of the report.
        total: number of functions.
        draw_credit: whether to draw its credit.
    """
    yield tag("h3", use.task or use.first_run.name)
    try:
        function = stored_function.load(RunDirectory(use.first_run).tfcaf)
    except UserError as error:
        yield definition_list([("used by", _users(use, data))])
        yield missing_note(f"Its file cannot be used: {error}")
        return
    text = explanation(function)
    if text:
        yield tag("blockquote", prose(text))
    else:
        yield missing_note("There is no explanation besides the comments in its source.")
    task = f"{function.env}/{function.task}"
    yield definition_list(
        [
            ("used by", _users(use, data)),
            ("in tables", f"mixer.function={use.digits}" if use.digits else ""),
            ("written for", task if task != use.task else ""),
            ("origin", provenance_text(function)),
            ("search", _search(use.first_run.parent / search_name(function.key), data)),
            ("cost", cost_text(function.cost)),
            ("verdict", function.verdict),
            ("prompt hash", _hash(function.prompt_hash)),
            ("key", _hash(function.key)),
            ("program hash", _hash(function.program.hash)),
        ]
    )
    yield source_details(function)
    if draw_credit and number <= MAX_FIGURES:
        print(f"credit figure {number}/{min(total, MAX_FIGURES)}: {use.task}", file=sys.stderr, flush=True)
        trained = bool(use.finished) and RunDirectory(use.first_run).policy.exists()
        yield credit_of_run(use.first_run, trained, use.task, f"credit{number}")
    else:
        reason = f"only the first {MAX_FIGURES} functions are drawn" if draw_credit else "disabled by --no-credit"
        yield missing_note(
            concat([f"No credit figure: {reason}. To draw it: ", tag("code", _explain_command(use.first_run))])
        )


def source_details(function: StoredFunction) -> Html:
    """Return the source of a function, collapsed if it is long."""
    source = function.source.strip()
    lines = len(source.split("\n"))
    code = tag("pre", tag("code", highlight(source)), class_="source", tabindex=0, aria_label="source")
    return details(f"Source, {count(lines, 'line')}", code, is_open=lines <= MAX_OPEN_LINES)


def credit_of_run(folder: Path, trained: bool, task: str, name: str) -> Html:
    """Return the credit figure of a run's function, or the reason why it cannot be drawn.

    Args:
        folder: the run directory.
        trained: whether the team acts with the run's policy; otherwise at random.
        task: the task, for the label.
        name: unique in the page, letters and digits.
    """
    team = f"the policy of {folder.name}" if trained else "a team that acts at random"
    caption = f"Credit of each agent along an episode of {team}, with rewards, actions and scenes."
    try:
        svg = credit_figure(folder, trained)
    except UserError as error:
        command = tag("code", _explain_command(folder))
        return missing_note(concat([f"No credit figure: {error}. To try again: ", command]))
    return svg_figure(svg, name, f"{task}: {caption}", caption, "credit")


def _explain_command(folder: Path) -> str:
    path = display_path(folder)
    return shlex.join(["python", "-m", "qllm_exp.tfcaf", "explain", f"{path}/tfcaf.json", "--policy", path])


def _users(use: FunctionUse, data: ReportData) -> Html:
    """Return the methods that use a function, a link to its first run, and the number of its other runs."""
    parts = [tag("a", use.first_run.name, href=data.link(use.first_run))]
    if use.methods:
        parts.insert(0, concat([f"{', '.join(use.methods)}: "]))
    others = len(use.finished) + len(use.unfinished) - 1
    if others:
        parts.append(concat([f" and {others} more"]))
    return concat(parts)


def _search(directory: Path, data: ReportData) -> Html:
    """Return a link to the page of the search that found a function, or how to make it; '' if there is no such directory here."""
    if not directory.is_dir():
        return Html("")
    if (directory / REPORT).exists():
        return tag("a", directory.name, href=data.link(directory / REPORT))
    command = shlex.join(["python", "-m", "qllm_exp", "tfcaf", "report", display_path(directory)])
    return concat([f"{directory.name}; its page: ", tag("code", command)])


def _hash(digits: str) -> Html:
    return tag("code", digits) if digits else Html("")


def _digest(run: Path) -> str:
    """Return the hash of a run's function file; '' if there is none."""
    try:
        return hashlib.sha256(RunDirectory(run).tfcaf.read_bytes()).hexdigest()
    except OSError:
        return ""
