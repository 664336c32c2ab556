"""Functions that were written for another state get a warning that shows what they read and what the task has there."""

from collections.abc import Iterator

import pytest
import torch

from qllm_exp.config.load import config_class
from qllm_exp.credit import stored_function
from qllm_exp.credit.probe_states import extreme_states
from qllm_exp.envs import StateField, StateLayout, make_env
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.generation.state_reading import misread_columns
from qllm_exp.generation.tracing import trace
from qllm_exp.generation.verify import verify

INF = float("inf")
CODES = {0.0: "no", 1.0: "yes"}


def plane(agents: int, opponents: int = 1) -> Iterator[StateField]:
    """Position and velocity of each, 4 columns, then which of three modes the match is in."""
    for entity, count in (("agent", agents), ("opponent", opponents)):
        for index in range(count):
            yield StateField(entity, index, "position", ("x", "y"), -INF, INF, "metres")
            yield StateField(entity, index, "velocity", ("x", "y"), -INF, INF, "metres per second")
    yield StateField("match", None, "mode", ("normal", "corner", "penalty"), 0.0, 1.0, special=CODES, one_hot=True)


PLANE = StateLayout.from_fields(plane(2))  # agents in 0:4 and 4:8, opponent in 8:12, mode in 12:15


def warning(body: str, layout: StateLayout = PLANE, n_agents: int = 2) -> str:
    """The warning for a function whose scores [B, n] are computed by `body`; '' for none."""
    source = "def credit_assignment(agents_q, global_state):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    source += "    weights = torch.softmax(scores, dim=1)\n    return (weights * agents_q).sum(dim=1, keepdim=True)\n"
    states = torch.randn(4, layout.size, generator=torch.Generator().manual_seed(0))
    traced = trace(source, states, n_agents)
    warnings = misread_columns(source, traced.program(states), traced.lines, layout)
    assert len(warnings) <= 1
    return "".join(warnings)


@pytest.mark.parametrize(
    "body",
    [
        "scores = -global_state[:, :8].view(-1, 2, 4)[:, :, :2].norm(dim=-1)",
        "agents = global_state[:, :8].view(-1, 2, 4)\nplace = global_state[:, 8:10]\n"
        "scores = -torch.sqrt(((agents[:, :, :2] - place.unsqueeze(1)) ** 2).sum(-1) + 1e-6)",
        "parts = []\nfor i in range(2):\n    x = global_state[:, 4 * i]\n    y = global_state[:, 4 * i + 1]\n"
        "    parts.append(torch.sqrt((x - global_state[:, 8]) ** 2 + (y - global_state[:, 9]) ** 2 + 1e-6))\n"
        "scores = torch.stack(parts, dim=1)",
        "# columns 8:10 are the position of the opponent\nopponent_position = global_state[:, 8:10]\n"
        "scores = opponent_position * global_state[:, 12:13]",
        "mode = global_state[:, 12:15]\nscores = mode.argmax(dim=1, keepdim=True) + global_state[:, :2]",
        "scores = global_state[:, [0, 4]] + 0.5 * global_state[:, [2, 6]]  # place after half a second",
    ],
)
def test_a_function_that_reads_what_the_task_has_gets_no_warning(body: str) -> None:
    assert warning(body) == ""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (  # as a function for 6 columns per agent
            "parts = []\nfor i in range(2):\n    parts.append(global_state[:, i * 6])\nscores = torch.stack(parts, dim=1)",
            "line 4 reads columns 0, 6 in steps of 6 as if they were alike; the task has agent 0 position x and agent 1 "
            "velocity x there",
        ),
        (
            "scores = global_state[:, :12].view(-1, 2, 6)[:, :, 0]",
            "line 2 cuts columns 0 to 11 into rows of 6, but the task has agent 0 position x, agent 0 position y, "
            "agent 0 velocity x, agent 0 velocity y, ... in the first, and agent 1 velocity x",
        ),
        (
            "gap = global_state[:, 0:1] - global_state[:, 2:3]\nscores = gap * agents_q.detach() * 0 + global_state[:, [0, 4]]",
            "line 2 compares columns 0 and 2; the task has agent 0 position x (metres) and agent 0 velocity x (metres per second)",
        ),
        (
            "far = torch.sqrt(global_state[:, 1:2] ** 2 + global_state[:, 12:13] ** 2)\nscores = far + global_state[:, [0, 4]]",
            "line 2 adds the squares of columns 1 and 12; the task has agent 0 position y (metres) and match mode normal (code)",
        ),
        (
            "scores = torch.stack([global_state[:, 6:10].norm(dim=1), global_state[:, 0]], dim=1)",
            "line 2 adds the squares of columns 6 and 8",
        ),
        (
            "scores = global_state[:, 12:14]",
            "line 2 reads columns 12 to 13; the task has match mode in columns 12 to 14, of which exactly one is 1 "
            "(normal, corner, penalty)",
        ),
        (
            "velocities = global_state[:, [0, 4]]\nscores = velocities * 1",
            "line 2 reads columns 0 to 4 as 'velocities'; the task has agent 0 position x, agent 1 position x there",
        ),
        (
            "speed = global_state[:, 0:2]  # agent's mode\nscores = speed * 1",
            "",
        ),
        (
            "near = global_state[:, 4:6]  # velocity of the opponent\nscores = near * 1",
            "line 2 reads columns 4 to 5 as 'near'; the task has agent 1 position x, agent 1 position y there",
        ),
        (
            "# columns 8:10 are the velocity\nscores = global_state[:, [0, 4]]",
            "line 2 says 'columns 8:10 are the velocity'; the task has opponent 0 position in columns 8 to 9",
        ),
        (
            '"""Read columns 88 to 90, the ball."""\nscores = global_state[:, [0, 4]]',
            "line 2 speaks of columns up to 90: 'Read columns 88 to 90, the ball.'",
        ),
        (
            "# the global state [B, 48] has 16 columns per agent\nscores = global_state[:, [0, 4]]",
            "line 2 says that the state has 48 columns",
        ),
    ],
)
def test_a_function_that_seems_to_read_something_else_gets_a_warning(body: str, expected: str) -> None:
    text = warning(body)
    assert expected in text
    if expected:
        assert text.startswith("it may be written for another state than this one of 15 columns")


def test_what_cannot_be_recognised() -> None:
    """A function for another order of the same quantities, without names, is like one for this order."""
    assert warning("scores = -(global_state[:, [4, 0]] - global_state[:, 8:9]).abs()") == ""


EIGHT_PER_AGENT = """
def QLLMNetwork(agents_q: torch.Tensor, global_state: torch.Tensor) -> torch.Tensor:
    scores = []
    for i in range(2):
        goal_x = global_state[:, i * 8]
        goal_y = global_state[:, i * 8 + 1]
        other_x = global_state[:, i * 8 + 6]
        other_y = global_state[:, i * 8 + 7]
        near = torch.sqrt(goal_x**2 + goal_y**2).clamp(min=0.1)
        far = torch.sqrt((goal_x - other_x) ** 2 + (goal_y - other_y) ** 2).clamp(max=5.0)
        scores.append((far / near).unsqueeze(1))
    weights = torch.softmax(torch.cat(scores, dim=1), dim=1)
    return torch.sum(agents_q * weights, dim=1, keepdim=True)
"""


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("features", "(metres) and agent 1 velocity x (metres per second)"),
        ("observations", "reads columns 0, 8 in steps of 8"),
    ],
)
def test_a_stride_of_eight_on_deception_is_noticed_in_both_states(state: str, expected: str) -> None:
    env = make_env(MpeConfig(task="simple_adversary", state=state), 8, 0)
    accepted = verify(EIGHT_PER_AGENT, env, True)
    (note,) = [note for note in accepted.notes if note.startswith("it may be written for another state")]
    assert expected in note


BUNDLED = sorted(path for path in stored_function.BUNDLED.glob("*/*.json") if path.parent.name != "grf")


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_bundled_functions_get_no_warning(path) -> None:
    function = stored_function.load(path)
    env = make_env(config_class("env", function.env)(task=function.task), 2, 0)
    states = extreme_states(env)[::8]
    traced = trace(function.source, states, env.n_agents)
    assert misread_columns(function.source, traced.program(states), traced.lines, env.layout) == ()
