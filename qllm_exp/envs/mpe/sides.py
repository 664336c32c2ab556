"""Who is the team in a VMAS scenario with two sides, and the scripts that play the other side.

The scripts are deterministic functions of the world, vectorised over its copies, and use only the controls that
VMAS's discrete actions offer: on each axis full force to one side, none, or full force to the other.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Script = Callable[[Any, Sequence[Any], Sequence[Any]], None]  # (world, opponents, team): sets each opponent's action

# Steps that a fleeing agent thinks ahead: it goes where, pushing so long, it would be farthest from the nearest chaser.
_FLEE_STEPS = 3.0


@dataclass(frozen=True)
class Sides:
    """`team_flag`: VMAS's `agent.adversary` on the team; `script` plays all others; `words` say how."""

    team_flag: bool
    script: Script
    words: str


def _positions(entities: Sequence[Any]) -> Tensor:
    return torch.stack([one.state.pos for one in entities], dim=1)  # [N, k, 2]


@functools.cache
def _pushes(device: torch.device) -> Tensor:
    """[9, 2], every combination of -1, 0, 1 on the two axes; no push comes first, so that it wins ties."""
    return torch.tensor(list(itertools.product((0.0, -1.0, 1.0), repeat=2)), device=device)


def _rest_points(world: Any, opponents: Sequence[Any], steps: float) -> tuple[Tensor, Tensor]:
    """Where each opponent would come to rest after `steps` steps of each push, and the pushes.

    VMAS damps velocity by (1 - drag) a step and then adds force / mass * dt, so what is left of a velocity v carries
    on for v * dt * (1 - drag) / drag, and a push of one step adds force / mass * dt * dt / drag in all.

    Returns: [N, m, 9, 2] points inside the world's bounds, [9, 2] pushes.
    """
    dt, pushes = world.dt, _pushes(world.device)
    points = []
    for one in opponents:
        drag = world._drag if one.drag is None else one.drag
        coast = one.state.pos + one.state.vel * (dt * (1 - drag) / drag)
        gain = one.action.u_range_tensor * one.action.u_multiplier_tensor * (steps * dt * dt / (drag * one.mass))
        points.append(coast[:, None, :] + pushes * gain)
    stacked = torch.stack(points, dim=1)
    for axis, semidim in enumerate((world.x_semidim, world.y_semidim)):
        if semidim is not None:
            stacked[..., axis].clamp_(-semidim, semidim)
    return stacked, pushes


def _push(opponents: Sequence[Any], pushes: Tensor, choice: Tensor) -> None:
    """Give each opponent the push that `choice` [N, m] names, at full force."""
    chosen = pushes[choice]
    for index, one in enumerate(opponents):
        one.action.u = chosen[:, index] * one.action.u_range_tensor * one.action.u_multiplier_tensor


def flee(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Run from the chasers: make for the point in bounds whose nearest chaser is farthest away."""
    points, pushes = _rest_points(world, opponents, _FLEE_STEPS)
    chasers = _positions(team)[:, None, None]  # [N, 1, 1, k, 2]
    nearest = torch.linalg.vector_norm(points.unsqueeze(-2) - chasers, dim=-1).amin(-1)  # [N, m, 9]
    _push(opponents, pushes, nearest.argmax(-1))


def guess_goal(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Go to the landmark that a team member is nearest to: the opponents are not told which one is the goal."""
    landmarks = _positions(world.landmarks)  # [N, l, 2]
    apart = torch.linalg.vector_norm(landmarks.unsqueeze(2) - _positions(team).unsqueeze(1), dim=-1)  # [N, l, k]
    guess = apart.amin(-1).argmin(-1)  # [N]
    target = landmarks[torch.arange(len(guess), device=guess.device), guess]
    points, pushes = _rest_points(world, opponents, 1.0)
    missed = torch.linalg.vector_norm(points - target[:, None, None], dim=-1)
    _push(opponents, pushes, missed.argmin(-1))


def repeat_message(world: Any, opponents: Sequence[Any], team: Sequence[Any]) -> None:
    """Say what the speaker has just said: without the key, that is all there is to know."""
    speaker = next(one for one in team if one.speaker)
    for one in opponents:
        one.action.u = torch.zeros(world.batch_dim, one.action_size, device=world.device)
        one.action.c = speaker.state.c.clone()


_FLEE_WORDS = (
    f"The prey is part of the environment: it pushes where, {_FLEE_STEPS:.0f} steps of thrust ahead and inside the "
    "bounds, its nearest chaser would be farthest."
)
_GUESS_WORDS = (
    "The adversary is part of the environment and is not told the goal: it goes to the landmark that any of the team's "
    "agents is nearest to, and brakes there."
)

SIDES = {
    "simple_tag": Sides(True, flee, _FLEE_WORDS),
    "simple_world_comm": Sides(True, flee, _FLEE_WORDS),
    "simple_adversary": Sides(False, guess_goal, _GUESS_WORDS),
    "simple_push": Sides(False, guess_goal, _GUESS_WORDS),
    "simple_crypto": Sides(
        False, repeat_message, "The eavesdropper is part of the environment: it repeats the speaker's last word."
    ),
}
