"""The prompts that ask a language model for a credit-assignment function, and the reading of its answers.

The words are in prompts/*.txt; all facts of a task are filled in from `env.task` and `env.layout`, so that a prompt
cannot say anything about the state that the environment does not give.
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

from qllm_exp.credit.refused import Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout

_WIDTH = 116
_MAX_ADVICE = 1000  # characters
_LONG = 26  # characters of a range that is explained below the table, once for all its rows
_FOLLOW_UPS = (
    *("coder_advice", "coder_next", "coder_retry"),
    *("evaluator_choice", "evaluator_advice", "evaluator_repair"),
)


@dataclass(frozen=True)
class Prompts:
    """The prompts of one task.

    Attributes:
        coder_system: role, setting, task, rules and answer format of the coder; complete on its own.
        coder_request: the first message to the coder.
        evaluator_system: role, the same task and the criteria of the evaluator.
    """

    coder_system: str
    coder_request: str
    evaluator_system: str

    @property
    def hash(self) -> str:
        """SHA-256 of these prompts and of the wording of all later messages, 64 hex digits."""
        words = asdict(self) | {name: _read(name) for name in _FOLLOW_UPS}
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def coder_advice(self, advice: str) -> str:
        """LanguageModel the coder for a better version of the function in its last answer."""
        return _fill("coder_advice", advice=advice.strip())

    def coder_next(self) -> str:
        """The same where nobody gives advice."""
        return _fill("coder_next")

    def coder_retry(self, reason: str) -> str:
        """Tells the coder why its function was refused and asks for another."""
        return _fill("coder_retry", reason=reason)

    def evaluator_choice(self, sources: Sequence[str]) -> str:
        """LanguageModel the evaluator to choose one of the sources."""
        shown = [f"Candidate {i}:\n\n```python\n{one.strip()}\n```" for i, one in enumerate(sources, start=1)]
        example = json.dumps([0] * (len(sources) - 1) + [1])
        return _fill("evaluator_choice", n_candidates=len(sources), candidates="\n\n".join(shown), example=example)

    def evaluator_advice(self, source: str) -> str:
        """LanguageModel the evaluator for one sentence about the function chosen last."""
        return _fill("evaluator_advice", source=source.strip())

    def evaluator_repair(self, reason: str) -> str:
        """Tells the evaluator why its answer cannot be read and asks again."""
        return _fill("evaluator_repair", reason=reason)


def render(env: TeamEnv, igm: bool | None = None, state_description: bool = True) -> Prompts:
    """The prompts for an environment.

    Args:
        igm: whether contributions must be non-negative; None: as the task says.
        state_description: whether they say what the columns of the global state mean.
    """
    task = env.task
    monotonic = task.monotonic if igm is None else igm
    facts = {
        "env": task.env,
        "task": task.task,
        "goal": _wrapped(f"Goal. {task.goal}"),
        "reward": _wrapped(f"Reward. {task.reward}"),
        "episode": _wrapped(f"Episode. {task.episode}"),
        "n_agents": env.n_agents,
        "first_agent": 0,
        "last_agent": env.n_agents - 1,
        "actions": "\n".join(f"  {index:>2}  {meaning}" for index, meaning in enumerate(task.actions)),
        "state_dim": env.state_dim,
        "state": _fill("state", table=state_table(env.layout)) if state_description else _fill("state_unknown"),
        "igm_rule": textwrap.indent(_read("igm_on" if monotonic else "igm_off"), "    ").strip(),
    }
    facts["task_text"] = _fill("task", **facts).rstrip()
    return Prompts(
        coder_system=_fill("coder_system", **facts),
        coder_request=_fill("coder_request", **facts),
        evaluator_system=_fill("evaluator_system", **facts),
    )


def state_table(layout: StateLayout) -> str:
    """One line per field: columns, label, range with unit, special values, components. Long ranges stand below it."""
    ranges = {one.start: _range(one) for one in layout}
    long = {
        text: f"({chr(97 + i)})" for i, text in enumerate(dict.fromkeys(r for r in ranges.values() if len(r) > _LONG))
    }
    rows: list[tuple[str, ...]] = [("columns", "field", "range", "special values", "components")]
    for one in layout:
        columns = str(one.start) if one.stop == one.start + 1 else f"{one.start}:{one.stop}"
        special = "; ".join(f"{value:g}: {meaning}" for value, meaning in one.special.items()) or "none"
        given = ranges[one.start]
        rows.append((columns, one.label, long.get(given, given), special, ", ".join(one.components)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    rows.insert(1, tuple("-" * len(title) for title in rows[0]))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows]
    notes = [_wrapped(f"{mark} {text}") for text, mark in long.items()]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _wrapped(text: str) -> str:
    """The text in lines of the width of the templates; its own line ends stay."""
    return "\n".join(textwrap.fill(line, _WIDTH, break_long_words=False) for line in text.strip().splitlines())


def _range(one: StateField) -> str:
    low, high = (f"{bound:g}" for bound in (one.low, one.high))
    if math.isinf(one.low) and math.isinf(one.high):
        interval = "any number"
    elif math.isinf(one.low) or math.isinf(one.high):
        interval = f"{high} or less" if math.isinf(one.low) else f"{low} or more"
    else:
        interval = f"{low} to {high}"
    return f"{interval} {one.unit}".strip()


def extract_code(answer: str) -> str:
    """The source in the one fenced block of an answer; raises Refused('answer', reason)."""
    lines = answer.replace("\r\n", "\n").split("\n")
    fences = [i for i, line in enumerate(lines) if line.lstrip().startswith("```")]
    if not fences:
        raise Refused("answer", "the answer has no code block: put the function into one ```python block")
    if len(fences) % 2:
        raise Refused("answer", "a code block is not closed: end the block with ``` on a line of its own")
    if len(fences) > 2:
        raise Refused(
            "answer", f"the answer has {len(fences) // 2} code blocks: give the complete function in exactly one"
        )
    first, last = fences
    tag = lines[first].strip().removeprefix("```").strip().lower()
    if tag not in {"python", "py", "python3", ""} or lines[last].strip() != "```":
        raise Refused("answer", "the code block must start with ```python and end with ```, each on a line of its own")
    source = textwrap.dedent("\n".join(lines[first + 1 : last])).strip()
    if not source:
        raise Refused("answer", "the code block is empty: put the function into it")
    return source + "\n"


def extract_choice(answer: str, n_candidates: int) -> int:
    """Index of the candidate chosen by a 0/1 list with a single 1; raises Refused('answer', reason)."""
    found = re.findall(r"\[[^\[\]]*\]", answer)
    wanted = f"answer with one JSON list of {n_candidates} numbers, a single 1 and otherwise 0, and nothing else"
    if len(found) != 1:
        raise Refused("answer", f"the answer has {len(found)} lists: {wanted}")
    try:
        votes = json.loads(found[0])
    except ValueError:
        votes = []
    whole = all(type(vote) is int for vote in votes)
    if not whole or sorted(votes) != [0] * (n_candidates - 1) + [1]:
        raise Refused("answer", f"{found[0]} is no choice: {wanted}")
    return int(votes.index(1))


def extract_advice(answer: str) -> str:
    """The evaluator's sentence; raises Refused('answer', reason)."""
    advice = " ".join(answer.split())
    if not advice:
        raise Refused("answer", "the answer is empty: give one sentence")
    if "```" in advice or len(advice) > _MAX_ADVICE:
        raise Refused("answer", f"give one sentence of at most {_MAX_ADVICE} characters, without code")
    return advice


def _read(name: str) -> str:
    return (resources.files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")


def _fill(name: str, **facts: object) -> str:
    """The template of that name with all its places filled; KeyError where a fact is missing."""
    return Template(_read(name)).substitute(facts).strip() + "\n"
