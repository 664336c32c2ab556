"""Prompts contain everything that the environment declares; answers are read in the ways that models write them."""

import contextlib
import re
import time
from types import SimpleNamespace
from typing import cast

import pytest

from qllm_exp.credit.refused import Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.generation.prompt_rendering import (
    MAX_ANSWER,
    extract_advice,
    extract_choice,
    extract_code,
    render,
    state_table,
)
from qllm_exp.generation.static_check import check

INF = float("inf")


def make_env(
    monotonic: bool = True, goal: str = "Collect all the food together, as fast as you can. " * 5 + "Then rest."
) -> TeamEnv:
    layout = StateLayout.from_fields(
        [
            StateField("agent", 0, "position", ("x", "y"), 0, 7, "cells"),
            StateField("agent", 0, "level", ("level",), 1, 2),
            StateField("agent", 1, "position", ("x", "y"), 0, 7, "cells"),
            StateField("agent", 1, "level", ("level",), 1, 2),
            StateField("food", 0, "position", ("x", "y"), -1, 7, "cells", {-1.0: "taken"}),
            StateField("agent", 0, "last_action", ("action",), -1, 5, "action index", {-1.0: "no action yet"}),
            StateField("agent", 1, "last_action", ("action",), -1, 5, "action index", {-1.0: "no action yet"}),
            StateField("ball", None, "velocity", ("vx", "vy", "vz"), -INF, INF, "metres per second"),
            StateField("match", None, "steps_left", ("steps",), 0, INF),
        ]
    )
    task = TaskDescription(
        env="lbf",
        task="8x8-2p-1f-coop",
        goal=goal,
        reward="Level of the food over $1 sum of all levels, shared.",
        actions=("none", "north", "south", "west", "east", "load"),
        episode="Ends when all food is taken, or after 50 steps.",
        n_agents=2,
        monotonic=monotonic,
    )
    return cast(TeamEnv, SimpleNamespace(task=task, layout=layout, n_agents=2, n_actions=6, state_dim=layout.size))


def test_table_has_every_column_once_and_in_order() -> None:
    env = make_env()
    table = state_table(env.layout)
    rows = table.partition("\n\n")[0].splitlines()[2:]
    covered = []
    for row, field in zip(rows, env.layout, strict=True):
        columns = row.split()[0]
        start, _, stop = columns.partition(":")
        covered += range(int(start), int(stop) if stop else int(start) + 1)
        assert field.label in row and ", ".join(field.components) in row and field.unit in table
        assert all(meaning in row for meaning in field.special.values())
    assert covered == list(range(env.state_dim))


def test_without_a_state_description_only_the_size_of_the_state_is_given() -> None:
    env = make_env()
    for text in (
        render(env, state_description=False).coder_system,
        render(env, state_description=False).evaluator_system,
    ):
        assert "14 columns" in text and "not told" in text
        assert not any(field.label in text for field in env.layout) and "no action yet" not in text


def test_each_row_of_the_table_is_once_in_both_system_prompts() -> None:
    env, prompts = make_env(), render(make_env())
    for row in filter(None, state_table(env.layout).splitlines()):
        assert prompts.coder_system.count(row) == 1 and prompts.evaluator_system.count(row) == 1


def test_ranges_are_written_out() -> None:
    table = state_table(make_env().layout)
    assert re.search(r"^0:2 +agent 0 position +0 to 7 cells +none +x, y$", table, re.MULTILINE)
    assert re.search(r"^8 +agent 0 last_action +-1 to 5 action index +-1: no action yet +action$", table, re.MULTILINE)
    assert re.search(r"^10:13 +ball velocity +\(a\) +none +vx, vy, vz$", table, re.MULTILINE)
    assert table.endswith("\n\n(a) any number metres per second") and "0 or more" in table


@pytest.mark.parametrize("name", ["coder_system", "evaluator_system"])
def test_system_prompts_contain_everything_about_the_task(name: str) -> None:
    env = make_env()
    text = getattr(render(env), name)
    text_on_one_line = " ".join(text.split())
    for fact in (env.task.goal, env.task.reward, env.task.episode, "lbf, 8x8-2p-1f-coop", "2 agents"):
        assert fact in text_on_one_line
    for index, meaning in enumerate(env.task.actions):
        assert re.search(rf"^ +{index} +{meaning}$", text, re.MULTILINE)
    assert "Q_tot = 2 * " in text and "1/2" in text


def test_coder_prompt_states_signature_shapes_and_answer_format() -> None:
    text = render(make_env()).coder_system
    assert "def credit_assignment(agents_q, global_state):" in text
    assert "float32 tensor [B, 2]" in text and "float32 tensor [B, 14]" in text and "float32 tensor [B, 1]" in text
    assert "exactly one block that starts with ```python" in text


def test_prompts_are_short_plain_lines_without_unfilled_placeholders() -> None:
    prompts = render(make_env())
    for text in (prompts.coder_system, prompts.coder_request, prompts.evaluator_system):
        assert not re.search(r"\$[a-z{]", text)
        assert max(map(len, text.splitlines())) <= 120
        assert text.endswith("\n") and "\t" not in text and "\n\n\n" not in text


def test_igm_rule_follows_the_task_unless_overridden() -> None:
    on, off = "must be non-negative", "sign of an agent's contribution is free"
    for env, igm, expected in [
        (make_env(True), None, on),
        (make_env(False), None, off),
        (make_env(True), False, off),
        (make_env(False), True, on),
    ]:
        for text in (render(env, igm).coder_system, render(env, igm).evaluator_system):
            assert expected in text and ({on, off} - {expected}).pop() not in text


def test_hash_changes_with_the_task_and_the_gate_only() -> None:
    base = render(make_env()).hash
    assert base == render(make_env()).hash and re.fullmatch("[0-9a-f]{64}", base)
    assert base != render(make_env(goal="Collect.")).hash
    assert base != render(make_env(), igm=False).hash
    assert base != render(make_env(), state_description=False).hash


def test_later_messages_contain_sources_advice_and_reasons() -> None:
    prompts = render(make_env())
    choice = prompts.evaluator_choice(["def a(): $x", "def b(): pass", "def c(): pass"])
    assert choice.count("```python") == 3 and "def a(): $x" in choice and choice.rstrip().endswith("[0, 0, 1]")
    assert choice.index("Candidate 1") < choice.index("def a()") < choice.index("Candidate 2") < choice.index("def b()")
    assert "Use the level." in prompts.coder_advice("Use the level.\n") and "chosen" in prompts.coder_next()
    assert "it has two lists" in prompts.evaluator_repair("it has two lists")
    assert "it returns shape [7]" in prompts.coder_retry("it returns shape [7]")
    assert "def a(): pass" in prompts.evaluator_advice("def a(): pass") and "one sentence" in prompts.evaluator_advice(
        ""
    )


SKETCH = "def credit_assignment(agents_q, global_state):\n    ...\n    return q_tot\n"
OTHER = "def credit_assignment(agents_q, global_state):\n    return agents_q.sum(1, keepdim=True)\n"
SOURCE = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{SOURCE}```",
        f"The nearest agent matters.\n\n```python\n{SOURCE}```\nThat is all.",
        f"```\n{SOURCE}\n```\n",
        f"```Python\r\n{SOURCE}```".replace("\n", "\r\n").replace("\r\r", "\r"),
        "1. So:\n   ```py\n" + "".join(f"   {line}\n" for line in SOURCE.splitlines()) + "   ```",
        f"Inline `code` is fine.\n```python\n\n{SOURCE}\n\n```",
        f'```python title="credit.py" {{1,2}}\n{SOURCE}```',
        f"``` python\n{SOURCE}```",
        f"```{{.python .numberLines}}\n{SOURCE}```",
        f"```text\n{SOURCE}```",
        f"~~~python\n{SOURCE}~~~",
        f"````markdown\n{SOURCE}````",
        f"\ufeff```python\n{SOURCE}```",
        f"```python\n\ufeff{SOURCE}```",
        f"Thoughts.\n```\ndef credit_assignment(agents_q, global_state)\n```\n```python\n{SOURCE}```",
        f"```bash\npip install torch\n```\n```python\n{SOURCE}```\n```python\nq = credit_assignment(q, s)\n```",
        f"```python\n{SOURCE}```\nIn short:\n```python\n{SKETCH}```",
        f"```python\n{OTHER}```\nBetter:\n```python\n{SOURCE}```",
        f"```python\n{SOURCE}```\n```python\n{SOURCE}```",
        f"<think>\nPerhaps\n```python\n{OTHER}```\n</think>\n```python\n{SOURCE}```",
        f"Perhaps\n```python\n{OTHER}```\n</think>\n\n```python\n{SOURCE}```",
        f"Half a block\n```python\n{OTHER}</think>```python\n{SOURCE}```",
        f"[THINK]\n```\n{OTHER}```[/THINK]{SOURCE}",
        f"<think>short</think>\n<thinking>more</thinking>\n```python\n{SOURCE}```\n",
        SOURCE,
        f"\ufeff{SOURCE}",
        f"The nearest agent matters.\n\n{SOURCE}\nThat is all.",
        "As follows.\n\n" + "".join(f"    {line}\n" for line in SOURCE.splitlines()) + "\nThat is all.",
    ],
)
def test_the_last_whole_function_is_the_source(answer: str) -> None:
    assert extract_code(answer) == SOURCE
    assert check(extract_code(answer)) == "credit_assignment"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no code block"),
        ("No code.", "no code block"),
        (f"```python\n{SOURCE}", "not closed"),
        ("```python\nx = 1\n```\n```python\ny = 1\n```", "2 code blocks, and none has a whole function"),
        (f"<think>\n```python\n{SOURCE}```\n</think>\nDone.", "code in thoughts does not count"),
        (f"<think>\n```python\n{SOURCE}```\n", "code in thoughts does not count"),
        (f"```python\n{SOURCE}```\n</think>", "code in thoughts does not count"),
        ("x" * (MAX_ANSWER + 1), "has 1,000,001 characters"),
        ("```json\n{}\n```", "must start with ```python"),
        ("```python\n\n```", "empty"),
        (f"```python\n{SOURCE}``` and more", "must start with ```python and end with ```"),
    ],
)
def test_other_answers_are_refused_with_the_reason(answer: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        extract_code(answer)
    assert refused.value.stage == "answer"


def test_the_only_block_is_the_source_whatever_it_holds() -> None:
    """The verifier says what is wrong with it."""
    assert extract_code("```python\nx = 1\n```") == "x = 1\n" and extract_code(f"```python\n{SKETCH}```") == SKETCH


HELPERS = """\
import math
from torch import Tensor

SCALE = 7.0  # cells


def near(state: Tensor) -> Tensor:
    return -(state[:, 0:1] / SCALE)

def credit_assignment(agents_q, global_state):
    weights = near(
        global_state
)
    return (weights * agents_q).mean(1, keepdim=True)
"""


@pytest.mark.parametrize(
    "before", ["", "Agents that are near matter more.\n\n", "1. import what is needed\n2. weigh\n"]
)
@pytest.mark.parametrize("after", ["", "\nThis respects the shapes:\n    [B, 1]\n", "\n**Done.**"])
def test_code_without_a_block_ends_where_prose_begins(before: str, after: str) -> None:
    assert extract_code(f"{before}{HELPERS}{after}") == HELPERS


HEAD = "def credit_assignment(agents_q, global_state):\n"
TYPOGRAPHIC = """\
    '''Weigh “near” agents – more.'''
    near = −(agents_q × 2.0) – 1\u00a0  # the agents’ distance − squared
    if global_state.shape[0] ≥ 1：
        note = “it's − fine”, 'as “is”', ‘so’, "\\"−"
    return （near， note）[0]\u200b
"""
PLAIN = """\
    '''Weigh “near” agents – more.'''
    near = -(agents_q * 2.0) - 1   # the agents’ distance − squared
    if global_state.shape[0] >= 1:
        note = "it's − fine", 'as “is”', 'so', "\\"−"
    return (near, note)[0]
"""


def test_typographic_signs_are_replaced_outside_of_strings_and_comments() -> None:
    assert extract_code(f"```python\n{HEAD}{TYPOGRAPHIC}```") == HEAD + PLAIN
    compile(HEAD + PLAIN, "answer", "exec")
    assert extract_code(f"{HEAD}{PLAIN}") == HEAD + PLAIN, "a source that is valid stays as it is"
    assert (
        extract_code(f"{HEAD}\u00a0\u00a0return agents_q.mean(1, True)") == f"{HEAD}  return agents_q.mean(1, True)\n"
    )


LONG = {
    "brackets": "[",
    "fences": "```\n",
    "backticks": "`",
    "open tags": "<think>\n",
    "tags": "<think>\n</think>",
    "halves of tags": "</think",
    "quotes": "“",
    "triple quotes": '−"""\n',
    "escapes": '\\"""−',
    "spaces": " ",
    "signatures": "def credit_assignment(\n",
    "functions": "def credit_assignment(a, b): return −a\n",
    "word": "a",
    "lines": "\n",
    "indented lines": " x = ’\n",
}


@pytest.mark.parametrize("name", LONG)
def test_the_time_to_read_an_answer_is_linear_in_its_length(name: str) -> None:
    def cpu_s(length: int) -> float:
        text = LONG[name] * (length // len(LONG[name]))
        start = time.process_time()
        for answer in (text, f"{SOURCE}−{text}", f"```python\n−{text}\n```"):
            for read in (extract_code, extract_advice, lambda answer: extract_choice(answer, 3)):
                with contextlib.suppress(Refused):
                    read(answer)
        return time.process_time() - start

    ratios = []
    for _ in range(3):  # a collection of garbage, or a neighbour on the core, may slow some of them
        short_s, long_s = cpu_s(9_000), cpu_s(90_000)
        ratios.append(long_s / short_s)
        if ratios[-1] < 40:
            break
    assert min(ratios) < 40, "a quadratic time would grow a hundredfold"


@pytest.mark.parametrize(("answer", "index"), [("[0, 1, 0]", 1), ("My choice: [1,0,0].", 0), ("\n[0,\n0,\n1]\n", 2)])
def test_a_choice_is_a_list_with_a_single_one(answer: str, index: int) -> None:
    assert extract_choice(answer, 3) == index


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nFirst [1, 0, 0], or [0, 0, 1]?\n</think>\n\n[0, 1, 0]",
        "First [1, 0, 0], or [0, 0, 1]?\n</think>\n\n[0, 1, 0]",
        "<think>\nFirst [1, 0, 0]? No: [0, 1, 0].\n</think>",
        "<think>\nFirst [1, 0, 0]? No: [0, 1, 0].\n</think>\nThe second one.",
        "<think>\nFirst [1, 0, 0]? No: [0, 1, 0]",
        "First [1, 0, 0]? No: [0, 1, 0]\n</think>\n",
        "I thought of [1, 0, 0] first.\n\n**[0, 1, 0]**",
        "```json\n[0, 1, 0]\n```",
        "It reads global_state[:, 0] and agents_q[0]: [0, 1, 0]",
    ],
)
def test_the_choice_is_what_the_model_ends_with(answer: str) -> None:
    assert extract_choice(answer, 3) == 1


@pytest.mark.parametrize(
    "answer",
    ["", "1", "[0, 0, 0]", "[1, 1, 0]", "[0, 1]", "[0, 1, 0, 0]", "[0, 2, 0]", "[0, 1.0, 0]", "[false, true, false]",
     "[0, 1, 0] or [1, 0, 0]", "[a, b, c]", "[[0, 1, 0], [0, 1, 0]]", '["0", "1", "0"]'],
)  # fmt: skip
def test_other_choices_are_refused(answer: str) -> None:
    with pytest.raises(Refused, match="a single 1"):
        extract_choice(answer, 3)


def test_advice_is_one_short_text_without_code() -> None:
    assert extract_advice("  Use the level\nof the food. ") == "Use the level of the food."
    assert extract_advice("<think>\nlong\n```x```</think>\nUse the level.") == "Use the level."
    assert extract_advice("long " * 1000 + "</think>Use the level.") == "Use the level."
    for answer, reason in (("", "empty"), ("```python\nx\n```", "without code"), ("word " * 300, "at most")):
        with pytest.raises(Refused, match=reason):
            extract_advice(answer)
