"""Scenarios with two sides: which side is the team, and the scripts that play the other side.

The scripts are deterministic functions of the world, vectorised over its copies. In VMAS they use only the controls of its
discrete actions: on each axis full force in one direction, none, or full force in the other direction. By PettingZoo's rules
(particles.py) the same aims are pursued with the five actions of these rules.

Shapes: N copies, m opponents, k agents of the team, l landmarks, P pushes.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Script = Callable[[Any, Sequence[Any], Sequence[Any]], None]  # (world, opponents, team): sets each opponent's action

# Look-ahead of a fleeing agent: it chooses the push that, kept up for so many steps, takes it farthest from the nearest
# chaser.
FLEE_STEPS = 3.0


@dataclass(frozen=True)
class Sides:
    """The two sides of a scenario.

    Attributes:
        team_is_adversary: value of VMAS's `agent.adversary` for the agents of the team.
        script: sets the actions of all other agents.
        description: what the script does, in words.
    """

    team_is_adversary: bool
    script: Script
    description: str


def _positions(entities: Sequence[Any]) -> Tensor:
    """Positions of k entities, [N, k, 2]."""
    return torch.stack([entity.state.pos for entity in entities], dim=1)


@functools.cache
def _pushes(device: torch.device) -> Tensor:
    """Every combination of -1, 0, 1 on the two axes, [9, 2]. No push comes first, so that it wins ties."""
    return torch.tensor(list(itertools.product((0.0, -1.0, 1.0), repeat=2))).to(device, non_blocking=True)


def _rest_points(world: Any, opponents: Sequence[Any], steps: float) -> tuple[Tensor, Tensor]:
    """Compute where each opponent would come to rest after each push.

    At each step VMAS damps the velocity by (1 - drag) and then adds force / mass * dt. An agent with velocity v
    therefore coasts another v * dt * (1 - drag) / drag, and a push of one step adds force / mass * dt * dt / drag to
    that.

    Args:
        world: the VMAS world.
        opponents: m agents.
        steps: duration of the push, in steps.

    Returns:
        Rest points [N, m, 9, 2] inside the world's bounds, and the pushes [9, 2].
    """
    dt, pushes = world.dt, _pushes(world.device)
    points = []
    for agent in opponents:
        drag = world._drag if agent.drag is None else agent.drag
        coast = agent.state.pos + agent.state.vel * (dt * (1 - drag) / drag)
        max_force = agent.action.u_range_tensor * agent.action.u_multiplier_tensor
        gain = max_force * (steps * dt * dt / (drag * agent.mass))
        points.append(coast[:, None, :] + pushes * gain)
    stacked = torch.stack(points, dim=1)
    for axis, semidim in enumerate((world.x_semidim, world.y_semidim)):
        if semidim is not None:
            stacked[..., axis].clamp_(-semidim, semidim)
    return stacked, pushes


def nearest_chaser(points: Tensor, chasers: Tensor) -> Tensor:
    """Compute how far the nearest chaser is from where each push of an opponent leads, [N, m, P].

    Args:
        points: [N, m, P, 2] rest points of the opponents.
        chasers: [N, k, 2] positions of the chasers.
    """
    distance: Tensor = torch.linalg.vector_norm(points.unsqueeze(-2) - chasers[:, None, None], dim=-1)
    return distance.amin(-1)


def guess_landmark(landmarks: Tensor, team: Tensor) -> Tensor:
    """Return the position of the landmark that any agent of the team is nearest to, [N, 2].

    Args:
        landmarks: [N, l, 2] positions.
        team: [N, k, 2] positions.
    """
    distance = torch.linalg.vector_norm(landmarks.unsqueeze(2) - team.unsqueeze(1), dim=-1)  # [N, l, k]
    guess = distance.amin(-1).argmin(-1)  # [N]
    return landmarks[torch.arange(len(guess), device=guess.device), guess]


def miss_distance(points: Tensor, target: Tensor) -> Tensor:
    """Compute how far from a target each push of an opponent leads, [N, m, P].

    Args:
        points: [N, m, P, 2] rest points of the opponents.
        target: [N, 2] position.
    """
    distance: Tensor = torch.linalg.vector_norm(points - target[:, None, None], dim=-1)
    return distance


def _push(opponents: Sequence[Any], pushes: Tensor, choice: Tensor) -> None:
    """Apply a push at full force to each opponent.

    Args:
        opponents: m agents.
        pushes: [9, 2].
        choice: [N, m] int64, index of each opponent's push.
    """
    chosen = pushes[choice]
    for index, agent in enumerate(opponents):
        agent.action.u = chosen[:, index] * agent.action.u_range_tensor * agent.action.u_multiplier_tensor


def flee(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Run from the chasers: head for the reachable point whose nearest chaser is farthest away."""
    points, pushes = _rest_points(world, opponents, FLEE_STEPS)
    _push(opponents, pushes, nearest_chaser(points, _positions(team)).argmax(-1))


def guess_goal(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Go to the landmark that any team member is nearest to: the opponents do not know which landmark is the goal."""
    target = guess_landmark(_positions(world.landmarks), _positions(team))
    points, pushes = _rest_points(world, opponents, 1.0)
    _push(opponents, pushes, miss_distance(points, target).argmin(-1))


def repeat_message(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Repeat the speaker's last word: without the key, nothing more can be known."""
    speaker = next(agent for agent in team if agent.speaker)
    for agent in opponents:
        agent.action.u = torch.zeros(world.batch_dim, agent.action_size, device=world.device)
        agent.action.c = speaker.state.c.clone()


_FLEE_DESCRIPTION = (
    f"The prey is part of the environment: it pushes where, {FLEE_STEPS:.0f} steps of thrust ahead and inside the "
    "bounds, its nearest chaser would be farthest."
)
GUESS_DESCRIPTION = (
    "The adversary is part of the environment and is not told the goal: it goes to the landmark that any of the team's "
    "agents is nearest to, and brakes there."
)

# The scenarios with two sides, by task.
SIDES = {
    "simple_tag": Sides(True, flee, _FLEE_DESCRIPTION),
    "simple_world_comm": Sides(True, flee, _FLEE_DESCRIPTION),
    "simple_adversary": Sides(False, guess_goal, GUESS_DESCRIPTION),
    "simple_push": Sides(False, guess_goal, GUESS_DESCRIPTION),
    "simple_crypto": Sides(
        False, repeat_message, "The eavesdropper is part of the environment: it repeats the speaker's last word."
    ),
}
