"""Worlds of circles by the rules of PettingZoo's particle environments (mpe2 1.1.1), vectorised over N copies in torch.

Physics, starts and observations are those of the package, in double precision like the package's; particle_tasks.py has the
tasks. There are these deviations:

1. Where the package has two sides, one of them is the team, and the other is scripted.
2. The global state lists positions and velocities, as by VMAS's rules. The package's is all agents' observations in a row, as
   with `env.state=observations`.
3. No force acts between bodies at exactly the same place. The package divides by zero there.

Shapes: N copies (num_envs), n agents of the team (n_agents), o opponents, M = n + o moving bodies (the team first), L landmarks.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot, softplus

from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.envs.mpe.state import goal_field, position_field, velocity_field
from qllm_exp.envs.pettingzoo.layout import MPE_ACTIONS

_DT = 0.1  # seconds per step
_DAMPING = 0.25  # share of the velocity that is lost in a step
_CONTACT_FORCE, _CONTACT_MARGIN = 100.0, 1e-3
_SMALLEST_DISTANCE = 1e-12  # replaces a distance of 0
_EXACT = 40.0  # beyond it log(1 + exp(x)) is x in double precision
_PUSHES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # of the five actions
ZERO = -1  # index of the vector (0, 0) among those of a copy


@dataclass(frozen=True)
class Kind:
    """Bodies of one kind.

    Attributes:
        count: number of bodies.
        radius: of each.
        collides: whether bodies that collide are pushed away.
        acceleration: of a push; mass is 1.
        max_speed: limit of the speed.
        start: half the width of the square in which the bodies start.
    """

    count: int
    radius: float
    collides: bool
    acceleration: float = 5.0
    max_speed: float = math.inf
    start: float = 1.0


class Vectors(NamedTuple):
    """Indices of the vectors (x, y) of a copy: positions and velocities in turn, landmarks, the goal's position, zero.

    Attributes:
        n_moving: number of moving bodies.
        n_landmarks: number of landmarks.
    """

    n_moving: int
    n_landmarks: int

    def position(self, body: int) -> int:
        """The position of a moving body."""
        return 2 * body

    def velocity(self, body: int) -> int:
        """The velocity of a moving body."""
        return 2 * body + 1

    def landmark(self, landmark: int) -> int:
        """The position of a landmark."""
        return 2 * self.n_moving + landmark

    @property
    def goal(self) -> int:
        """The position of the goal, where the task has one."""
        return self.landmark(self.n_landmarks)


class ParticleEnv(TeamEnv):
    """N copies of a world of circles on an unbounded plane.

    Args:
        config: the options.
        team: the agents of the team.
        opponents: the agents of the scripted side.
        landmarks: the landmarks.
        num_envs: number of parallel copies.
        seed: seed of the starts.
        device: device of all tensors.
    """

    n_actions = len(MPE_ACTIONS)
    has_goal = False  # whether one landmark is the goal of an episode

    # State of the current episodes, float64.
    positions: Tensor  # [N, M, 2]
    velocities: Tensor  # [N, M, 2]
    _fixed: Tensor  # [N, L + 1 or L + 2, 2]: the last vectors of a copy, from the first landmark on
    _flags: Tensor  # [N, L or 0]: 1 for the goal
    _elapsed: int

    def __init__(
        self, config: Any, team: Kind, opponents: Kind, landmarks: Kind, num_envs: int, seed: int, device: torch.device
    ) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self.n_agents = team.count
        self._team, self._opponents, self._landmarks = team, opponents, landmarks
        self.vectors = Vectors(team.count + opponents.count, landmarks.count)
        self._reward_scale = 1 / team.count if config.reward == "mean" else 1.0
        self.layout = StateLayout.from_fields(self._fields())
        self.task = self._describe(config)

        def table(values: list[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        moving = [kind for kind in (team, opponents) for _ in range(kind.count)]
        self._pushes = table([list(push) for push in _PUSHES])
        self._acceleration = table([[kind.acceleration] for kind in moving])
        self._max_speed = table([[kind.max_speed] for kind in moving])
        self._has_speed_limit = any(kind.max_speed < math.inf for kind in moving)
        self._has_collisions = team.collides
        self._landmarks_collide = landmarks.collides
        bodies = moving + [landmarks] * landmarks.count
        self.reach = table([[first.radius + second.radius for second in bodies] for first in moving])  # [M, M + L]

        seen = [self.observed(agent) for agent in range(team.count)]
        self.obs_dim = 2 * len(seen[0])
        self._seen, self._seen_from = (
            torch.tensor([view[part] % self._n_vectors for views in seen for view in views], device=device)
            for part in (0, 1)
        )
        self._available = torch.ones(num_envs, team.count, self.n_actions, dtype=torch.bool, device=device)
        self._generator = torch.Generator(device)
        self.seed(seed)

    @property
    def _n_vectors(self) -> int:
        """Number of vectors of a copy."""
        return self.vectors.goal + self.has_goal + 1

    @abstractmethod
    def observed(self, agent: int) -> list[tuple[int, int, str]]:
        """Return what an agent of the team observes: pairs of vectors, of which it sees the difference, and its name."""

    @abstractmethod
    def team_reward(self) -> Tensor:
        """Compute the sum of the rewards of the team's agents, [N] float64."""

    @abstractmethod
    def texts(self) -> tuple[str, str, str]:
        """Return the goal, the script of the opponents ('' for none) and the reward of an agent, in words."""

    def opponent_actions(self) -> Tensor:
        """Choose the actions of the opponents, [N, o]."""
        return torch.zeros(self.num_envs, 0, dtype=torch.int64, device=self.device)

    def reset(self) -> Observation:
        """Start a new episode in every copy: all bodies at random places, those that move at rest."""
        bodies = []
        for kind in (self._team, self._opponents, self._landmarks):
            draws = torch.rand(
                self.num_envs, kind.count, 2, generator=self._generator, device=self.device, dtype=torch.float64
            )
            bodies.append((2 * draws - 1) * kind.start)
        goal = torch.randint(
            max(1, self._landmarks.count), (self.num_envs,), generator=self._generator, device=self.device
        )
        return self.start(torch.cat(bodies[:2], 1), bodies[2], goal)

    def start(self, positions: Tensor, landmarks: Tensor, goal: Tensor) -> Observation:
        """Start an episode in every copy from given places.

        Args:
            positions: [N, M, 2] of the team and then of the opponents, which are at rest.
            landmarks: [N, L, 2].
            goal: [N] int64, the landmark that is the goal; without effect in tasks that have none.
        """
        self.positions = positions.to(self.device, torch.float64, copy=True)
        self.velocities = torch.zeros_like(self.positions)
        fixed = [landmarks.to(self.device, torch.float64), torch.zeros_like(self.positions[:, :1])]
        self._flags = self.positions.new_zeros(self.num_envs, 0)
        if self.has_goal:
            fixed.insert(1, fixed[0].take_along_dim(goal[:, None, None], 1))
            self._flags = one_hot(goal, self._landmarks.count).double()
        self._fixed = torch.cat(fixed, 1)
        self._elapsed = 0
        return Observation(*self._observe())

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]; scripts act for the opponents."""
        playing = self._elapsed < self.episode_limit
        if self._opponents.count:
            actions = torch.cat((actions, self.opponent_actions()), 1)
        force = embedding(actions, self._pushes) * self._acceleration
        if self._has_collisions:
            force = force + self._collision_forces()
        # As in the package, a body moves by the velocity from before the push.
        self.positions = self.positions + self.velocities * _DT
        velocities = self.velocities * (1 - _DAMPING) + force * _DT
        if self._has_speed_limit:
            speed = torch.linalg.vector_norm(velocities, dim=-1, keepdim=True)
            velocities = torch.where(speed > self._max_speed, velocities / speed * self._max_speed, velocities)
        self.velocities = velocities
        self._elapsed += 1
        reward = (self.team_reward() * (self._reward_scale if playing else 0.0)).float()
        terminated = torch.zeros_like(reward, dtype=torch.bool)
        truncated = torch.full_like(terminated, self._elapsed == self.episode_limit)
        return Step(*self._observe(), reward, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Seed the generator of the starts."""
        self._generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator of the starts."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the generator from a `state_dict`."""
        self._generator.set_state(saved["generator"])

    def observation_fields(self, agent: int) -> list[StateField]:
        """Names of the columns of an agent's observation."""
        fields = []
        for _, _, name in self.observed(agent):
            if name.startswith("message"):
                words, silent = ("word_0", "word_1"), {0.0: "agents cannot speak in this task"}
                fields.append(StateField("agent", agent, name, words, 0.0, 0.0, special=silent))
            else:
                unit = "metres per second" if name.startswith("velocity") else "metres"
                fields.append(StateField("agent", agent, name, ("x", "y"), -math.inf, math.inf, unit))
        return fields

    def body_name(self, body: int) -> str:
        """Name of a moving body in the state, e.g. 'agent_0' or 'opponent_0'."""
        return f"agent_{body}" if body < self.n_agents else f"opponent_{body - self.n_agents}"

    def motion_and_places(self, agent: int) -> list[tuple[int, int, str]]:
        """Return an agent's own velocity and position, and the places of all landmarks and other bodies relative to it."""
        own = self.vectors.position(agent)
        motion = [(self.vectors.velocity(agent), ZERO, "velocity"), (own, ZERO, "position")]
        return motion + self.landmark_views(agent) + self.body_views(agent, range(self.vectors.n_moving))

    def landmark_views(self, agent: int) -> list[tuple[int, int, str]]:
        """Return the places of all landmarks relative to an agent."""
        v = self.vectors
        return [(v.landmark(k), v.position(agent), f"offset_to_landmark_{k}") for k in range(v.n_landmarks)]

    def body_views(self, agent: int, bodies: Iterable[int]) -> list[tuple[int, int, str]]:
        """Return the places of bodies relative to an agent, without its own."""
        v = self.vectors
        return [
            (v.position(body), v.position(agent), f"offset_to_{self.body_name(body)}")
            for body in bodies
            if body != agent
        ]

    def landmark_positions(self) -> Tensor:
        """Positions of the landmarks, [N, L, 2]."""
        return self._fixed[:, : self._landmarks.count]

    def goal_position(self) -> Tensor:
        """Position of the goal, [N, 1, 2], in a task that has one."""
        return self._fixed[:, self._landmarks.count : self._landmarks.count + 1]

    def distances(self, others: Tensor) -> Tensor:
        """Distances of the moving bodies from other places, [N, M, K].

        Args:
            others: [N, K, 2], the other places.
        """
        distance: Tensor = torch.linalg.vector_norm(self.positions.unsqueeze(2) - others.unsqueeze(1), dim=-1)
        return distance

    def _collision_forces(self) -> Tensor:
        """Sum of the forces with which other bodies push each moving body away, [N, M, 2]."""
        others = (
            torch.cat((self.positions, self.landmark_positions()), 1) if self._landmarks_collide else self.positions
        )
        difference = self.positions.unsqueeze(2) - others.unsqueeze(1)  # [N, M, K, 2]
        distance: Tensor = torch.linalg.vector_norm(difference, dim=-1)
        overlap = self.reach[:, : others.shape[1]] - distance
        depth = softplus(overlap / _CONTACT_MARGIN, threshold=_EXACT) * _CONTACT_MARGIN
        # The difference of a body from itself is 0, and so is its force on itself.
        scale = _CONTACT_FORCE * depth / distance.clamp(min=_SMALLEST_DISTANCE)
        return (difference * scale.unsqueeze(-1)).sum(2)

    def rest_points(self, steps: float) -> Tensor:
        """Compute where each opponent would come to rest after each push, [N, o, A, 2].

        A body with velocity v coasts another v * dt / damping, and a push of one step adds as much of its acceleration * dt.

        Args:
            steps: duration of the push, in steps.
        """
        reach = _DT / _DAMPING
        coast = self.positions[:, self.n_agents :] + self.velocities[:, self.n_agents :] * reach
        return coast.unsqueeze(2) + self._pushes * (steps * self._opponents.acceleration * _DT * reach)

    def _observe(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `Observation` holds."""
        moving = torch.stack((self.positions, self.velocities), 2).flatten(1, 2)
        vectors = torch.cat((moving, self._fixed), 1)  # [N, vectors, 2]
        seen = vectors.index_select(1, self._seen) - vectors.index_select(1, self._seen_from)
        state = torch.cat((vectors[:, : self.vectors.goal].flatten(1), self._flags), 1)
        return seen.view(self.num_envs, self.n_agents, self.obs_dim).float(), state.float(), self._available.clone()

    def _fields(self) -> list[StateField]:
        """Return the fields of the global state in order, which is the same as by VMAS's rules."""
        fields = []
        for name, kind in (("agent", self._team), ("opponent", self._opponents)):
            for index in range(kind.count):
                fields += [position_field(name, index, math.inf), velocity_field(name, index, kind.max_speed)]
        fields += [position_field("landmark", index, self._landmarks.start) for index in range(self._landmarks.count)]
        return fields + [goal_field(index) for index in range(self._landmarks.count) if self.has_goal]

    def _describe(self, config: Any) -> TaskDescription:
        """Describe the task in words."""
        goal, script, reward = self.texts()
        aggregate = "mean" if config.reward == "mean" else "sum"
        return TaskDescription(
            env="mpe",
            task=config.task,
            goal=f"{goal} {script}".strip(),
            reward=f"Each step: the {aggregate} of what the {self.n_agents} agents of the team get. {reward}",
            actions=MPE_ACTIONS,
            episode=f"After {self.episode_limit} steps.",
            n_agents=self.n_agents,
        )
