"""The credit-assignment functions of the runs: what each says, where it comes from, and the credit that it gives."""

import ast
import hashlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qllm_exp.credit import stored_function
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import FUNCTION
from qllm_exp.results.report.credit import credit_picture
from qllm_exp.results.report.parts import Html, absent, facts, folded, joined, section, tag
from qllm_exp.results.report.prose import prose
from qllm_exp.results.report.python import highlighted
from qllm_exp.results.report.subject import ReportData, shown
from qllm_exp.results.report.svg import figure
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.utils.text import count

MOST_FUNCTIONS, MOST_PICTURES = 50, 12  # in one page
LONG_SOURCE = 24  # lines; a longer source is folded
_FENCED = re.compile(r"^(```+|~~~+).*?^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass
class Used:
    """A function, and the folders of the runs that use it on one task: finished ones, and others.

    Attributes:
        methods: names of the methods of the finished ones. digits: what the tables call it (mixer.function).
    """

    task: str
    digits: str = ""
    finished: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    methods: dict[str, None] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        return (self.finished or self.others)[0]


def used(subject: ReportData) -> list[Used]:
    """The functions of all runs by task, told apart by their files."""
    found: dict[tuple[str, str], Used] = {}
    for one in subject.records:
        key = _digest(one.path)
        if key:
            of = found.setdefault((one.task, key), Used(one.task, str(one.settings.get(FUNCTION, ""))))
            of.finished.append(one.path)
            of.methods[one.method] = None
    for other in subject.collection.unfinished:
        key = _digest(other.path)
        if key:
            found.setdefault((other.task, key), Used(other.task)).others.append(other.path)
    return list(found.values())


def functions(subject: ReportData, pictures: bool) -> Html:
    """The section on the functions; '' where no run uses one.

    Args:
        pictures: whether to draw the credit along an episode, which takes seconds for each function.
    """
    every = used(subject)
    if not every:
        return Html("")
    told = []
    for number, one in enumerate(every[:MOST_FUNCTIONS], 1):
        told.append(tag("article", *_told(one, number, subject, len(every), pictures), id=f"function-{number}"))
    left = len(every) - len(told)
    more = absent(f"And {count(left, 'function')} more: python -m qllm_exp.tfcaf show RUN_FOLDER/tfcaf.json shows one.")
    lead = (
        f"{count(len(every), 'function')} that a language model wrote, or that somebody gave, in place of a trained mixing "
        "network: Q_tot = n f(q, s). The credit of an agent is the derivative of Q_tot with respect to its Q; 1 is equal credit."
    )
    return section("functions", "Credit-assignment functions", tag("p", lead), *told, *[more] * bool(left))


def explanation(one: StoredFunction) -> str:
    """What the model said of the function beside its source; else the function's docstring; '' where there is neither."""
    for row in reversed(one.transcript):
        answer = row.get("answer")
        if isinstance(answer, str) and one.source.strip() and one.source.strip() in answer:
            said = _FENCED.sub("", answer).strip()
            if said and one.source.strip() not in said:
                return said
    try:
        defined = [node for node in ast.parse(one.source).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError):
        return ""
    return next((ast.get_docstring(node) or "" for node in defined if node.name == one.function), "")


def provenance(one: StoredFunction) -> str:
    """Who wrote it, when and how, in a sentence."""
    of = {key: str(value) for key, value in one.provenance.items()}
    who, procedure = of.pop("model", "") or "somebody who is not known", of.pop("procedure", "")
    when = f" on {of.pop('date')}" if of.get("date") else ""
    how = "Imported from" if procedure == "imported" else "Written by"
    rest = "".join(f"; {key} {value}" for key, value in of.items() if value)
    return f"{how} {who}{when}{f', in {procedure}' if procedure not in ('', 'imported') else ''}{rest}."


def cost(of: dict[str, Any]) -> str:
    """'4 calls, 12,345 tokens, 0.0123 USD'; '' for a function that nobody was asked for."""
    calls, sent, received, usd = (of.get(key) for key in ("calls", "tokens_in", "tokens_out", "usd"))
    if not isinstance(calls, int) or not calls:
        return ""
    tokens = sum(one for one in (sent, received) if isinstance(one, int))
    price = f"{usd:.4f} USD" if isinstance(usd, int | float) else "no price known"
    return f"{count(calls, 'call')}, {f'{tokens:,} tokens, ' if tokens else ''}{price}"


def _told(one: Used, number: int, subject: ReportData, total: int, pictures: bool) -> Iterator[Html]:
    yield tag("h3", one.task or one.first.name)
    directory = RunDirectory(one.first)
    try:
        function = stored_function.load(directory.tfcaf)
    except UserError as error:
        yield facts([("used by", _users(one, subject))])
        yield absent(f"Its file cannot be used: {error}")
        return
    said = explanation(function)
    yield (
        tag("blockquote", prose(said))
        if said
        else absent("Nothing was said about it beside the comments in its source.")
    )
    made_for = f"{function.env}/{function.task}"
    yield facts(
        [
            ("used by", _users(one, subject)),
            ("in tables", f"mixer.function={one.digits}" * bool(one.digits)),
            ("written for", made_for if made_for != one.task else ""),
            ("comes from", provenance(function)),
            ("cost", cost(function.cost)),
            ("verdict", function.verdict),
            ("prompt hash", _hash(function.prompt_hash)),
            ("key", _hash(function.key)),
            ("program hash", _hash(function.program.hash)),
        ]
    )
    lines = len(function.source.strip().split("\n"))
    source = tag(
        "pre", tag("code", highlighted(function.source.strip())), class_="source", tabindex=0, aria_label="source"
    )
    yield folded(f"Source, {count(lines, 'line')}", source, opened=lines <= LONG_SOURCE)
    if pictures and number <= MOST_PICTURES:
        yield _picture(one, number, min(total, MOST_PICTURES))
    else:
        why = "only the first functions of a page are drawn" if pictures else "asked for none (--no-credit)"
        yield absent(joined([f"No picture of its credit here: {why}. To draw it: ", tag("code", _explain(one.first))]))


def _picture(one: Used, number: int, total: int) -> Html:
    trained = bool(one.finished) and RunDirectory(one.first).policy.exists()
    print(f"credit {number}/{total}: playing {one.task}", file=sys.stderr, flush=True)
    who = f"the policy of {one.first.name}" if trained else "a team that acts at random"
    caption = f"Credit of each agent along an episode of {who}, beside rewards, actions and scenes."
    try:
        svg = credit_picture(one.first, trained)
    except UserError as error:
        return absent(
            joined([f"No picture of its credit: {error}. To try it alone: ", tag("code", _explain(one.first))])
        )
    return figure(svg, f"credit{number}", f"{one.task}: {caption}", caption, "credit")


def _explain(folder: Path) -> str:
    where = shown(folder)
    return shlex.join(["python", "-m", "qllm_exp.tfcaf", "explain", f"{where}/tfcaf.json", "--policy", where])


def _users(one: Used, subject: ReportData) -> Html:
    first = tag("a", one.first.name, href=subject.link(one.first))
    others = len(one.finished) + len(one.others) - 1
    methods: Sequence[str] = list(one.methods)
    words = f"{', '.join(methods)}: " if methods else ""
    return joined([words, first, f" and {others} more" * bool(others)])


def _hash(digits: str) -> Html:
    return tag("code", digits) if digits else Html("")


def _digest(run: Path) -> str:
    try:
        return hashlib.sha256(RunDirectory(run).tfcaf.read_bytes()).hexdigest()
    except OSError:
        return ""
