"""Explaining a credit-assignment function: its credit, what the credit depends on, and the files about both."""

import csv
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs import make_env
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.errors import UserError
from qllm_exp.explain import attribution
from qllm_exp.explain.episodes import (
    Episode,
    find_entities,
    find_events,
    key_steps,
    play,
    random_policy,
    visited_states,
)
from qllm_exp.explain.explain import explain
from qllm_exp.explain.figures import action_symbol
from qllm_exp.generation.tracing import trace
from qllm_exp.mixers.tfcaf import Tfcaf

pytestmark = pytest.mark.slow

# Weights (s_2, -1, 0.25): the first reads column 2, the second is negative, the third is constant.
SIGNED = """
import torch
def credit_assignment(agents_q, global_state):
    s = global_state[:, 2]
    weights = torch.stack([s, 0 * s - 1.0, 0 * s + 0.25], dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""
PRODUCT = """
def credit_assignment(agents_q, global_state):
    return agents_q[:, :1] * agents_q[:, 1:2] + global_state[:, :1]
"""
MEAN = """
def credit_assignment(agents_q, global_state):
    return agents_q.mean(dim=1, keepdim=True)
"""
LAYOUT = StateLayout.from_fields(
    [
        StateField("agent", 0, "position", ("x", "y"), -1.0, 1.0),
        StateField("ball", None, "speed", ("value",), 0.0, 1.0, "metres per second", {-1.0: "no ball"}),
        StateField("agent", 1, "position", ("x", "y"), -1.0, 1.0),
    ]
)


@cache  # each source is traced once for all tests
def program(source: str, n_agents: int, state_dim: int) -> Program:
    states = torch.rand(7, state_dim, generator=torch.Generator().manual_seed(0))
    return trace(source, states, n_agents).program(states)


def stored_function(source: str, env: TeamEnv) -> StoredFunction:
    return StoredFunction(
        env.task.env, env.task.task, source, "credit_assignment", program(source, env.n_agents, env.state_dim)
    )


class Scripted(TeamEnv):
    """Two copies: the first terminates at its fourth step, the second at the time limit. State: (step, copy)."""

    num_envs, n_agents, n_actions, obs_dim, episode_limit = 2, 1, 3, 1, 6
    device = torch.device("cpu")
    layout = StateLayout.from_fields([StateField("match", None, "clock", ("step", "copy"), 0.0, 6.0)])

    def reset(self) -> Observation:
        self.time = 0
        return Observation(torch.zeros(2, 1, 1), self.state(), torch.tensor([False, True, False]).expand(2, 1, 3))

    def step(self, actions: Tensor) -> Step:
        assert bool((actions == 1).all())
        self.time += 1
        ended = torch.tensor([self.time == 4, False])
        reward = torch.full((2,), float(self.time))
        limit = torch.tensor([False, self.time == 6])
        mask = torch.tensor([False, True, False]).expand(2, 1, 3)
        return Step(torch.zeros(2, 1, 1), self.state(), mask, reward, ended, limit)

    def state(self) -> Tensor:
        return torch.tensor([[float(self.time), 0.0], [float(self.time), 1.0]])

    def seed(self, seed: int) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


class WithMemory:
    """A policy that counts its episodes."""

    episodes = 0

    def reset(self) -> None:
        self.episodes += 1

    def __call__(self, obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        return available.float().argmax(-1)


class Cycle(WithMemory):
    """All agents take action 0, then 1, then 2, and so on, from 0 in every episode."""

    def reset(self) -> None:
        super().reset()
        self.step = 0

    def __call__(self, obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        self.step += 1
        return torch.full(available.shape[:2], (self.step - 1) % available.shape[2])


@pytest.mark.parametrize(
    ("source", "affine", "enforce"), [(SIGNED, True, True), (SIGNED, True, False), (PRODUCT, False, False)]
)
def test_credit_is_the_derivative_of_the_mixer(source: str, affine: bool, enforce: bool) -> None:
    n, width = (3, 5) if affine else (2, 2)
    traced = program(source, n, width)
    q, states = torch.randn(20, n, requires_grad=True), torch.randn(20, width)
    (expected,) = torch.autograd.grad(Tfcaf(traced, affine, enforce)(q, states).sum(), q)
    credit = attribution.credits(traced, affine, enforce, states, q)
    assert torch.allclose(credit, expected, atol=1e-6)
    assert not credit.requires_grad and (credit < 0).any() != enforce


def test_credit_of_a_stored_function_is_that_of_its_program() -> None:
    traced, states = program(SIGNED, 3, 5), torch.randn(4, 5)
    stored = StoredFunction("some", "task", SIGNED, "credit_assignment", traced)
    assert torch.equal(
        attribution.credits(stored, True, True, states),
        3 * torch.stack([states[:, 2].clamp(min=0), *torch.tensor([[0.0], [0.25]]).expand(2, 4)], 1),
    )


def test_without_q_the_gradient_is_taken_at_zero() -> None:
    assert not attribution.credits(program(PRODUCT, 2, 2), False, False, torch.randn(5, 2)).any()


def test_the_gate_refuses_a_function_without_weights() -> None:
    with pytest.raises(UserError, match=r"mixer\.igm=relax"):
        attribution.credits(program(PRODUCT, 2, 2), False, True, torch.randn(5, 2))


def signed_credit(states: Tensor) -> Tensor:
    return attribution.credits(program(SIGNED, 3, 5), True, False, states)


def test_only_the_field_that_a_weight_reads_is_important() -> None:
    table = attribution.dependence(signed_credit, LAYOUT, torch.rand(50, 5))
    assert [row.label for row in table.by_grouping("kind")] == ["all ball fields", "all agent fields"]
    assert [row.label for row in table.by_grouping("field")] == ["ball speed", "agent 0 position", "agent 1 position"]
    for row in table.rows:
        read = "ball" in row.label
        assert (row.by_agent[0] > 0) == read and row.by_agent[1:] == (0, 0)
    assert table.by_grouping("kind")[1].columns == (0, 1, 3, 4)
    assert [curve.label for curve in table.curves] == ["ball speed (metres per second)"]


def test_importance_is_the_mean_absolute_change_of_credit() -> None:
    # With two states, each has only one other state, so the mean is known: 3 * |0.9 - 0.2|.
    states = torch.zeros(2, 5)
    states[:, 2] = torch.tensor([0.2, 0.9])
    speed = attribution.dependence(signed_credit, LAYOUT, states).by_grouping("field")[0]
    assert speed.by_agent[0] == pytest.approx(2.1, abs=1e-5)
    # Over many states it is the mean over pairs.
    states = torch.rand(400, 5, generator=torch.Generator().manual_seed(0))
    pairs = 3 * (states[:, None, 2] - states[None, :, 2]).abs().mean()
    speed = attribution.dependence(signed_credit, LAYOUT, states, draws=10).by_grouping("field")[0]
    assert speed.by_agent[0] == pytest.approx(float(pairs), rel=0.05)


def test_a_curve_is_the_mean_credit_at_each_value_and_skips_special_ones() -> None:
    states = torch.rand(60, 5)
    states[:20, 2] = -1
    drawn = attribution.curve(signed_credit, LAYOUT.find("ball", "speed"), 0, states)
    assert drawn.values.shape == (25,) and 0 <= float(drawn.values[0]) < float(drawn.values[-1]) <= 1
    assert torch.allclose(drawn.credit[:, 0], 3 * drawn.values, atol=1e-5)
    assert torch.allclose(drawn.credit[:, 1:], torch.tensor([-3.0, 0.75]).expand(25, 2), atol=1e-5)
    states[:, 2] = torch.arange(60) % 3
    assert attribution.curve(signed_credit, LAYOUT.find("ball", "speed"), 0, states).values.tolist() == [0, 1, 2]


def test_tables_are_the_same_in_markdown_and_csv() -> None:
    table = attribution.dependence(signed_credit, LAYOUT, torch.rand(50, 5))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.markdown().splitlines()]
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert lines[0] == ["state", "agent 0", "agent 1", "agent 2"] and set(lines[1][1:]) == {"---:"}
    assert len(lines) - 2 == len(rows) == len(table.rows) == 5
    for line, row in zip(lines[2:], rows, strict=True):
        assert line[0] == row["label"]
        assert [float(cell) for cell in line[1:]] == pytest.approx(
            [float(row[f"agent_{i}"]) for i in range(3)], abs=1e-4
        )
    assert {row["label"]: row["columns"] for row in rows}["agent 1 position"] == "3 4"


@pytest.mark.parametrize(("steps", "length", "ended"), [(6, 4, "terminated"), (3, 3, "cut")])
def test_recording_stops_when_the_first_copy_ends(steps: int, length: int, ended: str) -> None:
    env = Scripted()
    episode = play(env, random_policy(0, env.device), steps)
    assert episode.ended == ended
    assert episode.rewards.tolist() == list(range(1, length + 1))
    assert episode.states.tolist() == [[step, 0] for step in range(length + 1)]
    assert episode.actions.tolist() == [[1]] * length


def test_truncation_is_distinguished_from_termination() -> None:
    env = make_env(MatrixConfig(episode_limit=5), 1, 0)
    episode = play(env, random_policy(0, env.device), 100)
    assert (len(episode.rewards), episode.ended) == (5, "truncated")


def test_visited_states_are_those_in_which_actions_were_chosen() -> None:
    policy = WithMemory()
    states = visited_states(Scripted(), policy, 20)  # 4 + 6 in an episode
    assert states.shape == (20, 2) and policy.episodes == 2
    assert sorted(states[states[:, 1] == 0][:, 0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert states[:, 0].max() == 5


def test_events_and_places_come_from_special_values() -> None:
    absent = {-1.0: "collected, or never placed"}
    layout = StateLayout.from_fields(
        [
            StateField("food", 0, "position", ("x", "y"), -1.0, 7.0, "cells", absent),
            StateField("food", 0, "level", ("level",), 0.0, 4.0, "", {0.0: "collected, or never placed"}),
            StateField("match", None, "ball_owner", ("nobody", "our_team"), 0.0, 1.0, special={0.0: "no", 1.0: "yes"}),
        ]
    )
    present, collected = [3.0, 4.0, 2.0], [-1.0, -1.0, 0.0]
    states = torch.tensor(
        [[*present, 1, 0], [*present, 0, 1], [*present, 1, 0], [*collected, 1, 0], [*collected, 1, 0]]
    )
    assert find_events(layout, states) == {
        "food 0: collected": [2],
        "ball owner: our team": [0],
        "ball owner: nobody": [1],
    }
    (food,) = find_entities(layout, states)
    assert (food.kind, food.index, food.unit) == ("food", 0, "cells")
    assert food.path[:3].tolist() == [[3, 4]] * 3 and food.path[3:].isnan().all()
    assert food.level is not None and food.level.tolist() == [2, 2, 2, 0, 0]


def test_entities_that_agents_observe_only_as_offsets_are_found() -> None:
    layout = StateLayout.from_fields(
        [
            StateField("agent", 0, "position", ("x", "y"), -9.0, 9.0),
            StateField("agent", 0, "offset_to_landmark_0", ("x", "y"), -9.0, 9.0),
            StateField("agent", 0, "offset_to_agent_1", ("x", "y"), -9.0, 9.0),
            StateField("agent", 1, "position", ("x", "y"), -9.0, 9.0),
        ]
    )
    entities = find_entities(layout, torch.tensor([[1.0, 2, 0.5, -1, 1, 1, 2, 3]]))
    places = {(entity.kind, entity.index): entity.path[0].tolist() for entity in entities}
    assert places == {("agent", 0): [1, 2], ("agent", 1): [2, 3], ("landmark", 0): [1.5, 1]}


def test_key_steps_are_where_reward_and_credit_change() -> None:
    rewards, credit = torch.zeros(40), torch.ones(40, 2)
    rewards[7], credit[20:] = 1.0, 0.5
    chosen = key_steps(Episode(torch.zeros(41, 1), torch.zeros(40, 2), rewards, "truncated"), credit)
    assert {7, 20} <= set(chosen) and len(chosen) == 4 and chosen == sorted(chosen)
    assert min(late - early for early, late in pairwise(chosen)) > 4
    shortest = Episode(torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(1), "terminated")
    assert key_steps(shortest, torch.ones(1, 2)) == [0]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("push right and up", ("move", "↗")),
        ("bottom_left", ("move", "↙")),
        ("north", ("move", "↑")),
        ("no push", ("idle", "")),
        ("none", ("idle", "")),
        ("load", ("load", "")),
        ("short_pass", ("pass", "")),
        ("release_sprint", ("release", "")),
        ("choose action 2", ("choose action 2", "2")),
    ],
)
def test_actions_have_a_kind_and_a_symbol(action: str, expected: tuple[str, str]) -> None:
    assert action_symbol(action) == expected


def check_files(paths: list[Path], folder: Path) -> dict[str, str]:
    """Check that all files exist in their formats, and return the texts."""
    names = {
        "credit.png",
        "credit.pdf",
        "dependence.png",
        "dependence.pdf",
        "dependence.md",
        "dependence.csv",
        "summary.md",
    }
    assert {path.name for path in paths} == names == {path.name for path in folder.iterdir()}
    for name in ("credit", "dependence"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert min((folder / f"{name}.{end}").stat().st_size for end in ("png", "pdf")) > 8_000
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.suffix in {".md", ".csv"}}


def test_explain_writes_figures_and_tables_and_restores_the_environment(tmp_path: Path) -> None:
    env = make_env(LbfConfig(task="5x5-2p-1f", episode_limit=20), 4, 3)
    before = env.state_dict()["generator"].clone()
    level = """
def credit_assignment(agents_q, global_state):
    weights = global_state[:, 2:6:3] - 1.5
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""
    texts = check_files(
        explain(stored_function(level, env), env, tmp_path / "new" / "x", enforce=True), tmp_path / "new" / "x"
    )
    assert torch.equal(env.state_dict()["generator"], before)
    summary = texts["summary.md"]
    assert "is affine" in summary and level.strip() in summary
    assert "0.0000 to 0.5000" in summary and "not always 1, from 0.0000 to 1.0000" in summary
    share = float(summary.split("Share of agents muted by the IGM gate: ")[1].split(" %")[0])
    assert 20 < share < 80  # levels are 1 or 2 with equal probability
    by_label = {row["label"]: row for row in csv.DictReader(texts["dependence.csv"].splitlines())}
    assert float(by_label["agent 0 level"]["agent_0"]) > 0.2 and float(by_label["agent 0 level"]["agent_1"]) == 0
    assert float(by_label["food 0 position"]["agent_0"]) == 0
    assert "| agent 1 level | 0.0000 |" in texts["dependence.md"]


def test_explain_shows_joint_actions_where_nothing_has_a_place(tmp_path: Path) -> None:
    env = make_env(MatrixConfig(), 2, 0)
    product = stored_function(PRODUCT, env)
    with pytest.raises(UserError, match="affine"):
        explain(product, env, tmp_path / "refused", enforce=True)
    texts = check_files(explain(product, env, tmp_path / "free", enforce=False), tmp_path / "free")
    assert "not affine" in texts["summary.md"] and "q = 0" in texts["summary.md"]


def test_explain_is_reproducible_and_plays_a_given_policy(tmp_path: Path) -> None:
    env = make_env(MatrixConfig(episode_limit=6), 1, 0)
    mean = stored_function("def credit_assignment(q, s):\n    return q.mean(dim=1, keepdim=True)\n", env)
    policy = Cycle()
    for name in ("a", "b"):
        explain(mean, env, tmp_path / name, enforce=False, act=policy)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    summary = (tmp_path / "a" / "summary.md").read_text()
    assert policy.episodes > 2 and "a given policy" in summary and "return 46" in summary  # payoffs 11, 7, 5, twice
    assert "Sum of weights: 1 in every state." in summary and "| 0 | 0.5000 | 0.5000 | 0.5000 |" in summary


def test_texts_of_a_function_are_inert_in_its_summary(tmp_path: Path) -> None:
    env = make_env(MatrixConfig(), 2, 0)
    active, shown = "\x1b[31m \u202ered", r"\x1b[31m \u202ered"
    source = f"{MEAN.rstrip()}  # {active}\n"
    stored = replace(stored_function(MEAN, env), source=source, provenance={active: active}, verdict=active)
    explain(stored, env, tmp_path, enforce=False)
    summary = (tmp_path / "summary.md").read_text()
    assert f"- {shown}: {shown}\n- verdict: {shown}\n" in summary and f"# {shown}\n" in summary
    assert all(line.isprintable() for line in summary.split("\n"))


def test_explain_refuses_a_program_that_fails_on_states_of_the_task(tmp_path: Path) -> None:
    env = make_env(MatrixConfig(), 2, 0)
    index = [["to.dtype", [{"ref": 1}, {"dtype": "int64"}], {}], ["gather.default", [{"ref": 0}, 1, {"ref": 3}], {}]]
    operations = [*index, ["mean.dim", [{"ref": 4}, [1], True], {}]]
    data = {"version": 1, "n_agents": 2, "state_dim": 2, "constants": [], "operations": operations, "output": 5}
    stored = replace(stored_function(MEAN, env), program=Program(data))
    with pytest.raises(UserError, match="does not work on the states of the task"):
        explain(stored, env, tmp_path, enforce=False)


def test_explain_refuses_a_function_for_another_task(tmp_path: Path) -> None:
    env = make_env(MatrixConfig(), 1, 0)
    with pytest.raises(UserError, match="agents"):
        explain(
            StoredFunction("lbf", "8x8", SIGNED, "credit_assignment", program(SIGNED, 3, 5)),
            env,
            tmp_path,
            enforce=True,
        )
