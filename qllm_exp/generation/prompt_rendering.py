"""The prompts that request a credit-assignment function from a language model, and the parsing of its answers.

The texts are in prompts/*.txt. All facts of a task come from `env.task` and `env.layout`, so a prompt cannot claim
anything about the state that the environment does not provide.
"""

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from string import Template

from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.generation.answer_text import holds_function, is_sketch, split_blocks, split_thoughts, unfenced_source

MAX_ANSWER = 1_000_000  # characters; with all its thoughts, an answer of 128,000 tokens has about 500,000

_WIDTH = 116
_MAX_ADVICE = 1000  # characters
_MAX_CHOICE = 100  # characters of a choice, beside 10 per candidate
_MAX_QUOTE = 100  # characters of an answer in a reason
_PYTHON_TAGS = {"", "python", "py", "python3", "torch", "pytorch"}
_BLOCK_ADVICE = "the code block must start with ```python and end with ```, each on a line of its own"
_LIST = re.compile(r"\[[^\[\]]*\]")
_MARKUP = " \t*`_.\ufeff"  # around a choice on a line of its own
_LONG = 26  # characters; a longer range is explained below the table, once for all its rows
_FOLLOW_UPS = (
    "coder_advice",
    "coder_next",
    "coder_retry",
    "evaluator_choice",
    "evaluator_advice",
    "evaluator_repair",
)
SEARCH_TEMPLATES = (  # of the requests of a search that sees returns
    "search_request",
    "search_parent",
    "search_returns",
    "search_q_tot",
    "search_credit",
    "search_columns",
    "search_gradients",
    "search_gate",
    "search_remarks",
)


@dataclass(frozen=True)
class Prompts:
    """The prompts of one task.

    Attributes:
        coder_system: system prompt of the coder: role, setting, task, rules and answer format; complete on its own.
        coder_request: the first message to the coder.
        evaluator_system: system prompt of the evaluator: role, the same task and its criteria.
    """

    coder_system: str
    coder_request: str
    evaluator_system: str

    @property
    def hash(self) -> str:
        """SHA-256 of these prompts and of the templates of all later messages, 64 hex digits."""
        texts = asdict(self) | {name: _read_template(name) for name in _FOLLOW_UPS}
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()

    def coder_advice(self, advice: str) -> str:
        """Render the request to the coder for a better version of its last function, with the evaluator's advice."""
        return fill("coder_advice", advice=advice.strip())

    def coder_next(self) -> str:
        """Render the request to the coder for a better version of its last function, without advice."""
        return fill("coder_next")

    def coder_retry(self, reason: str) -> str:
        """Render the request to the coder to repair a refused function."""
        return fill("coder_retry", reason=reason)

    def evaluator_choice(self, sources: Sequence[str]) -> str:
        """Render the request to the evaluator to choose one of the sources."""
        listing = "\n\n".join(
            f"Candidate {i}:\n\n```python\n{source.strip()}\n```" for i, source in enumerate(sources, start=1)
        )
        example = json.dumps([0] * (len(sources) - 1) + [1])
        return fill("evaluator_choice", n_candidates=len(sources), candidates=listing, example=example)

    def evaluator_advice(self, source: str) -> str:
        """Render the request to the evaluator for one sentence of advice on the function chosen last."""
        return fill("evaluator_advice", source=source.strip())

    def evaluator_repair(self, reason: str) -> str:
        """Render the request to the evaluator to repeat an answer that cannot be read."""
        return fill("evaluator_repair", reason=reason)


def render(env: TeamEnv, igm: bool | None = None, state_description: bool = True) -> Prompts:
    """Render the prompts of an environment.

    Args:
        env: the environment, whose task and state layout are described.
        igm: whether contributions must be non-negative; None for what the task declares.
        state_description: whether to describe the columns of the global state.
    """
    task = env.task
    monotonic = task.monotonic if igm is None else igm
    facts = {
        "env": task.env,
        "task": task.task,
        "goal": wrap(f"Goal. {task.goal}"),
        "reward": wrap(f"Reward. {task.reward}"),
        "episode": wrap(f"Episode. {task.episode}"),
        "n_agents": env.n_agents,
        "first_agent": 0,
        "last_agent": env.n_agents - 1,
        "actions": "\n".join(f"  {index:>2}  {meaning}" for index, meaning in enumerate(task.actions)),
        "state_dim": env.state_dim,
        "state": fill("state", table=state_table(env.layout)) if state_description else fill("state_unknown"),
        "igm_rule": textwrap.indent(_read_template("igm_on" if monotonic else "igm_off"), "    ").strip(),
    }
    facts["task_text"] = fill("task", **facts).rstrip()
    return Prompts(
        coder_system=fill("coder_system", **facts),
        coder_request=fill("coder_request", **facts),
        evaluator_system=fill("evaluator_system", **facts),
    )


def state_table(layout: StateLayout) -> str:
    """Render a state layout as a table with a line per field. Long ranges are moved below the table, as notes."""
    ranges = {field.start: _range(field) for field in layout}
    long_ranges = dict.fromkeys(text for text in ranges.values() if len(text) > _LONG)
    marks = {text: f"({chr(ord('a') + i)})" for i, text in enumerate(long_ranges)}
    rows: list[tuple[str, ...]] = [("columns", "field", "range", "special values", "components")]
    for field in layout:
        columns = str(field.start) if field.stop == field.start + 1 else f"{field.start}:{field.stop}"
        special = "; ".join(f"{value:g}: {meaning}" for value, meaning in field.special.items()) or "none"
        interval = ranges[field.start]
        rows.append((columns, field.label, marks.get(interval, interval), special, ", ".join(field.components)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    rows.insert(1, tuple("-" * len(title) for title in rows[0]))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [wrap(f"{mark} {text}") for text, mark in marks.items()]
    return "\n".join([*lines, "", *notes] if notes else lines)


def wrap(text: str) -> str:
    """Wrap a text to the width of the templates; its own line breaks are kept."""
    return "\n".join(textwrap.fill(line, _WIDTH, break_long_words=False) for line in text.strip().splitlines())


def _range(field: StateField) -> str:
    """Return the range of a field with its unit, e.g. '0 to 7 cells'."""
    low, high = f"{field.low:g}", f"{field.high:g}"
    if math.isinf(field.low) and math.isinf(field.high):
        interval = "any number"
    elif math.isinf(field.low):
        interval = f"{high} or less"
    elif math.isinf(field.high):
        interval = f"{low} or more"
    else:
        interval = f"{low} to {high}"
    return f"{interval} {field.unit}".strip()


def extract_code(answer: str) -> str:
    """Extract the source of the function from an answer.

    Thoughts before the answer do not count. The function may stand in a fenced block of any kind, or in no block. Of several
    blocks with a whole function, the last one counts, since models correct themselves; one that leaves something out ('...')
    counts only if there is no other. Typographic signs that Python does not know are replaced, see `plain_punctuation`.

    Args:
        answer: the coder's answer.

    Raises:
        Refused: there is no source; the stage is 'answer', and the reason says what to write instead.
    """
    _check_length(answer)
    text, thoughts = split_thoughts(answer)
    blocks, rest = split_blocks(text)
    closed = [block for block in blocks if block.is_closed]
    whole = [block.source for block in closed if holds_function(block.source)]
    if whole:
        return [source for source in whole if not is_sketch(source) or all(map(is_sketch, whole))][-1]
    if len(closed) < len(blocks):
        raise Refused("answer", f"a code block is not closed: {_BLOCK_ADVICE}")
    source = unfenced_source(rest)
    if holds_function(source):
        return source
    python = [block.source for block in blocks if block.tag in _PYTHON_TAGS]
    if len(blocks) > 1 and len(python) != 1:
        raise Refused(
            "answer",
            f"the answer has {len(blocks)} code blocks, and none has a whole function {FUNCTION_NAMES[0]}: put the complete "
            "function into exactly one",
        )
    if blocks and not python:
        raise Refused("answer", f"the code block has no function: {_BLOCK_ADVICE}")
    if python and not python[0]:
        raise Refused("answer", "the code block is empty: put the function into it")
    if python:
        return python[0]
    if split_blocks(thoughts)[0]:
        raise Refused(
            "answer", "code in thoughts does not count: put the function into a ```python block after </think>"
        )
    raise Refused("answer", "the answer has no code block: put the function into one ```python block")


def extract_choice(answer: str, n_candidates: int) -> int:
    """Extract the chosen candidate from a 0/1 list with a single 1.

    The list may stand alone on the last line, or it is the only such list in the answer; other lists do not count. If there
    is none in the answer itself, the last one in the thoughts before it is the choice.

    Args:
        answer: the evaluator's answer.
        n_candidates: length of the list.

    Returns:
        The index of the candidate, from 0.

    Raises:
        Refused: the answer is anything else; the stage is 'answer'.
    """
    _check_length(answer)
    advice = f"answer with one JSON list of {n_candidates} numbers, a single 1 and otherwise 0, and nothing else"
    text, thoughts = split_thoughts(answer)
    lines = [line for line in (line.strip(_MARKUP) for line in text.splitlines()) if line]
    last = _LIST.fullmatch(lines[-1]) if lines else None
    choice = _parse_choice(lines[-1], n_candidates) if last else None
    if choice is not None:
        return choice
    lists = _LIST.findall(text)
    choices = [choice for choice in (_parse_choice(votes, n_candidates) for votes in lists) if choice is not None]
    if len(choices) == 1:
        return choices[0]
    if not lists:
        thought = (_parse_choice(votes, n_candidates) for votes in reversed(_LIST.findall(thoughts)))
        choice = next((choice for choice in thought if choice is not None), None)
        if choice is not None:
            return choice
    if len(lists) == 1:
        raise Refused("answer", f"{lists[0][:_MAX_QUOTE]} is not a valid choice: {advice}")
    raise Refused("answer", f"the answer has {len(lists)} lists: {advice}")


def extract_advice(answer: str) -> str:
    """Extract the evaluator's sentence of advice, without thoughts before it; raises Refused('answer', reason)."""
    _check_length(answer)
    advice = " ".join(split_thoughts(answer)[0].split())
    if not advice:
        raise Refused("answer", "the answer is empty: give one sentence")
    if "```" in advice or len(advice) > _MAX_ADVICE:
        raise Refused("answer", f"give one sentence of at most {_MAX_ADVICE} characters, without code")
    return advice


def _check_length(answer: str) -> None:
    """Raise Refused for an answer that is too long to be read."""
    if len(answer) > MAX_ANSWER:
        raise Refused("answer", f"the answer has {len(answer):,} characters: write at most {MAX_ANSWER:,}")


def _parse_choice(votes: str, n_candidates: int) -> int | None:
    """Return the index of the 1 in a list of votes; None if it is not a choice between so many candidates."""
    if len(votes) > _MAX_CHOICE + 10 * n_candidates:
        return None
    try:
        numbers = json.loads(votes)
    except ValueError:
        return None
    if not all(type(number) is int for number in numbers) or sorted(numbers) != [0] * (n_candidates - 1) + [1]:
        return None
    return int(numbers.index(1))


def _read_template(name: str) -> str:
    """Read a template from prompts/."""
    return (resources.files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")


def template_hash(names: Sequence[str]) -> str:
    """Return the SHA-256 of templates, 64 hex digits."""
    return hashlib.sha256(
        json.dumps({name: _read_template(name) for name in names}, sort_keys=True).encode()
    ).hexdigest()


def fill(name: str, **facts: object) -> str:
    """Fill in all placeholders of a template; raises KeyError if a fact is missing."""
    return Template(_read_template(name)).substitute(facts).strip() + "\n"
