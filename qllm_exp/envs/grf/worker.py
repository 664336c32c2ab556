"""One process of the football environment: it plays its share of the matches, each in an engine of its own.

The parent starts this file as a script (see _grf_pool.py) and not as a module of the package: a worker then loads
neither torch nor gym, only numpy and the engine (30 MB, 0.2 s), and inherits no thread, lock or CUDA context.
It must therefore import nothing from qllm_exp.

What a step means (rewards, endings, held games) follows gfootball 2.10.2: FootballEnvCore.step, CheckpointRewardWrapper
and Simple115StateWrapper with fixed positions. The tests hold the two side by side, step by step.
"""

import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import json
import mmap
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# The engine's names of the 19 actions, in the order of gfootball's default action set.
ACTIONS: Final = (
    *("idle", "left", "top_left", "top", "top_right", "right", "bottom_right", "bottom", "bottom_left"),
    *("long_pass", "high_pass", "short_pass", "shot", "sprint", "release_direction", "release_sprint", "sliding"),
    *("dribble", "release_dribble"),
)
OBS_DIM: Final = 115  # simple115v2
PLAYERS: Final = 11  # players of a team that simple115v2 has room for
ACTIVE, MODE = slice(97, 108), slice(108, 115)  # who is controlled, game mode; the 97 columns before are everybody's
CHECKPOINTS, CHECKPOINT_REWARD = 10, 0.1
_HELD, _HELD_LONG = 20, 30  # steps after which the engine's wrapper restarts a game that a player holds up
_PATIENCE = 10_000  # engine calls without the ball coming into play after which the engine is taken to be stuck
_GOALKEEPER = "e_PlayerRole_GK"
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Facts:
    """What the parent has to know of a scenario.

    Attributes:
        roles: role of each player of our team, in the engine's order, e.g. 'GK', 'CM'.
        agents: the players that agents 0, 1, ... control, ascending.
        opponents: number of opponents.
        duration: steps after which the scenario itself ends.
        ends_out_of_play: it ends when the ball leaves the pitch, or at a foul.
        ends_on_turnover: it ends when the other team wins the ball.
    """

    roles: list[str]
    agents: list[int]
    opponents: int
    duration: int
    ends_out_of_play: bool
    ends_on_turnover: bool


class SharedArrays:
    """The block of memory that the parent and the workers share: one row per match.

    The parent writes `seeds` and `actions`; a worker writes the other arrays' rows of its own matches.
    """

    def __init__(self, num_envs: int, n_agents: int, fd: int) -> None:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "seeds": ((num_envs,), np.int64),
            "actions": ((num_envs, n_agents), np.int64),
            "obs": ((num_envs, n_agents, OBS_DIM), np.float32),
            "rewards": ((num_envs, n_agents), np.float32),
            "goals": ((num_envs, 2), np.int32),
            "playing": ((num_envs,), np.bool_),
            "terminated": ((num_envs,), np.bool_),
            "truncated": ((num_envs,), np.bool_),
        }
        sizes = {name: int(np.prod(shape)) * np.dtype(kind).itemsize for name, (shape, kind) in shapes.items()}
        ends = np.cumsum([size + -size % 64 for size in sizes.values()]).tolist()  # whole cache lines
        starts = dict(zip(sizes, [0, *ends[:-1]], strict=True))
        total = ends[-1]
        if os.fstat(fd).st_size < total:
            os.ftruncate(fd, total)
        block = mmap.mmap(fd, total)
        views = {
            name: np.frombuffer(block, kind, int(np.prod(shape)), starts[name]).reshape(shape)
            for name, (shape, kind) in shapes.items()
        }
        self.seeds: NDArray[np.int64] = views["seeds"]
        self.actions: NDArray[np.int64] = views["actions"]
        self.obs: NDArray[np.float32] = views["obs"]
        self.rewards: NDArray[np.float32] = views["rewards"]
        self.goals: NDArray[np.int32] = views["goals"]
        self.playing: NDArray[np.bool_] = views["playing"]
        self.terminated: NDArray[np.bool_] = views["terminated"]
        self.truncated: NDArray[np.bool_] = views["truncated"]


class Scenario:
    """Builds the engine's configuration from a scenario file of gfootball, and says who is controlled.

    The players that no agent controls are marked as not controllable. The engine then never moves control from one
    player to another during an episode, and its controllers are the controlled players in ascending order.

    Args:
        engine: the module gfootball_engine.
        name: a scenario, e.g. 'academy_3_vs_1_with_keeper'.
        goalkeeper: control our goalkeeper too.
        attackers: control only so many players, the last ones of the scenario's list; None: all.
    """

    def __init__(self, engine: Any, name: str, goalkeeper: bool, attackers: int | None) -> None:
        self._engine = engine
        self._team = engine.e_Team.e_Left
        self._build_scenario = _scenario_module(name).build_scenario
        self._agents: list[int] = []
        config = self.build(0)
        field = [i for i, p in enumerate(config.left_team) if str(p.role) != _GOALKEEPER]
        keepers = [i for i in range(len(config.left_team)) if i not in field]
        self._agents = field[-attackers:] if attackers else sorted(field + (keepers if goalkeeper else []))
        roles = [str(p.role).removeprefix("e_PlayerRole_") for p in config.left_team]
        self.facts = Facts(
            roles,
            self._agents,
            len(config.right_team),
            config.game_duration + 1,  # the engine counts from -1 and stops at its game_duration
            config.end_episode_on_out_of_play,
            config.end_episode_on_possession_change,
        )

    def build(self, seed: int) -> Any:
        """A new configuration for one episode: the engine changes the one it is given."""
        self._config = self._engine.ScenarioConfig.make()
        self._build_scenario(self)
        config = self._config
        config.real_time = False
        config.left_agents, config.right_agents = len(self._agents), 0
        for i, player in enumerate(config.left_team):
            player.controllable = i in self._agents
        config.game_engine_random_seed = seed
        config.reverse_team_processing = bool(seed % 2)
        return config

    # What a scenario file calls.

    def config(self) -> Any:
        return self._config

    def SetTeam(self, team: Any) -> None:  # noqa: N802 - the name that scenario files use
        self._team = team

    def AddPlayer(self, x: float, y: float, role: Any, lazy: bool = False, controllable: bool = True) -> None:  # noqa: N802
        side = self._config.left_team if self._team == self._engine.e_Team.e_Left else self._config.right_team
        side.append(self._engine.FormationEntry(x, y, role, lazy, controllable))

    def SetBallPosition(self, ball_x: float, ball_y: float) -> None:  # noqa: N802
        self._config.ball_position[0] = ball_x
        self._config.ball_position[1] = ball_y


class Match:
    """One match in one engine, seen from our team.

    After `reset` and `step` the attributes hold what happened; `obs` and `rewards` are the arrays given.

    Args:
        engine: the module gfootball_engine.
        scenario: what is played.
        checkpoints: give the checkpoint rewards beside those for goals.
        limit: steps after which an episode is truncated, besides the scenario's own duration.
        obs: [n, 115] float32 to write to. rewards: [n] float32 to write to, one reward per agent.
    """

    def __init__(
        self,
        engine: Any,
        scenario: Scenario,
        checkpoints: bool,
        limit: int,
        obs: NDArray[np.float32],
        rewards: NDArray[np.float32],
    ) -> None:
        self.obs, self.rewards = obs, rewards
        self.terminated = self.truncated = False
        self.goals = (0, 0)
        self._scenario, self._checkpoints, self._limit = scenario, checkpoints, limit
        self._backend = [getattr(engine.e_BackendAction, name) for name in ACTIONS]
        self._running = engine.GameState.game_running
        self._n = len(scenario.facts.agents)
        rules = scenario.build(0)
        self._ends_on_goal: bool = rules.end_episode_on_score
        self._ends_out_of_play = scenario.facts.ends_out_of_play
        self._ends_on_turnover = scenario.facts.ends_on_turnover
        self._duration: int = rules.game_duration
        self._padding = [[-1.0] * 2 * (PLAYERS - size) for size in (len(rules.left_team), len(rules.right_team))]
        self._env = engine.GameEnv()
        self._env.game_config.physics_steps_per_frame = 10
        self._env.start_game()

    def reset(self, seed: int) -> None:
        """Kick off an episode. Equal seeds and equal actions give equal episodes."""
        self._env.state = self._running
        self._env.reset(self._scenario.build(seed), False)
        self._collected = [0] * self._n
        self._steps = self._held = self._difference = 0
        self._mode = self._owner = self._last_owner = -1
        self._controlled: list[int] = []
        self.terminated = self.truncated = False
        self.rewards[:] = 0.0
        self._observe_in_play()

    def step(self, actions: list[int]) -> None:
        """Play one step: one action index per agent."""
        if self._held >= _HELD:
            actions = [self._restart(agent) for agent in range(self._n)]
        perform = self._env.perform_action
        for agent, action in enumerate(actions):
            perform(self._backend[action], True, agent)
        self._env.step()
        previous_mode = self._mode if self._steps else -1  # how a scenario kicks off is not an interruption
        self._observe_in_play()
        self._steps += 1
        self._end(previous_mode)
        self._reward()

    def _restart(self, agent: int) -> int:
        """The action that gets a game going again that has been held up for too long."""
        if self._held == _HELD:
            return ACTIONS.index("short_pass")
        if self._owner == 0 and self._controlled[agent] == self._owner_player:
            return ACTIONS.index("right" if self._held < _HELD_LONG else "left")
        return ACTIONS.index("idle")

    def _observe_in_play(self) -> None:
        """Let the engine run on until the ball is in play, and observe."""
        for _ in range(_PATIENCE):
            info = self._env.get_info()
            if info.is_in_play:
                return self._observe(info)
            self._env.step()
        raise RuntimeError(f"the engine did not bring the ball into play in {_PATIENCE} calls")

    def _observe(self, info: Any) -> None:
        row: list[float] = []
        for team, padding in zip((info.left_team, info.right_team), self._padding, strict=True):
            directions: list[float] = []
            for player in team:
                place, motion = player.position, player.direction
                row += (place[0], place[1])
                directions += (motion[0], motion[1])
            row += padding + directions + padding
        ball, motion = info.ball_position, info.ball_direction
        owner = info.ball_owned_team
        row += (ball[0], ball[1], ball[2], motion[0], motion[1], motion[2], owner == -1, owner == 0, owner == 1)
        self.obs[:, : ACTIVE.start] = row
        controllers = info.left_controllers
        controlled = [controllers[i].controlled_player for i in range(self._n)]
        if controlled != self._controlled:
            self._controlled = controlled
            self.obs[:, ACTIVE] = [[player == i for i in range(PLAYERS)] for player in controlled]
        mode = int(info.game_mode)
        if mode != self._mode:
            self._mode = mode
            self.obs[:, MODE] = [mode == i for i in range(MODE.stop - MODE.start)]
        self._ball = ball[0], ball[1]
        self._owner, self._owner_player = owner, info.ball_owned_player
        self.goals = info.left_goals, info.right_goals
        self._clock = info.step

    def _end(self, previous_mode: int) -> None:
        """Find out whether the step ended the episode, and how."""
        over = self._ends_on_goal and max(self.goals) > 0
        over |= self._ends_out_of_play and self._mode != 0 and previous_mode == 0
        if self._owner != -1:
            over |= self._ends_on_turnover and self._last_owner not in (-1, self._owner)
            self._last_owner = self._owner
        self._held = self._held + 1 if self._mode != 0 else 0
        self.terminated = over
        # A clock that runs out says nothing about the state: value targets bootstrap through it.
        self.truncated = not over and (self._steps >= self._limit or self._clock >= self._duration)

    def _reward(self) -> None:
        """The rewards of the step, one per agent."""
        difference = self.goals[0] - self.goals[1]
        scored, self._difference = difference - self._difference, difference
        self.rewards[:] = scored
        if not self._checkpoints or (scored != 1 and self._owner != 0):
            return
        for agent, had in enumerate(self._collected):
            now = had
            if scored == 1:
                now = CHECKPOINTS  # a goal pays all that are left
            elif self._owner_player == self._controlled[agent]:
                now = max(had, self._circles_entered())
            if now > had:
                self.rewards[agent] += CHECKPOINT_REWARD * (now - had)
                self._collected[agent] = now

    def _circles_entered(self) -> int:
        """In how many of the ten circles around the opponents' goal the ball is; their radii fall from 0.99 to 0.19."""
        distance = ((self._ball[0] - 1) ** 2 + self._ball[1] ** 2) ** 0.5
        return sum(distance <= 0.99 - 0.8 / (CHECKPOINTS - 1) * circle for circle in range(CHECKPOINTS))


def _scenario_module(name: str) -> Any:
    """A scenario file of gfootball. `import gfootball` would load gym and OpenCV: only its scenarios folder is wanted."""
    package = "_gfootball_scenarios"
    if package not in sys.modules:
        found = importlib.util.find_spec("gfootball")
        assert found is not None and found.submodule_search_locations
        folder = os.path.join(next(iter(found.submodule_search_locations)), "scenarios")
        spec = importlib.util.spec_from_file_location(
            package, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")


def serve(connection: socket.socket, memory: int, job: dict[str, Any]) -> None:
    """Answer the parent until it closes the connection, which is also what its death does."""
    engine = importlib.import_module("gfootball_engine")
    scenario = Scenario(engine, job["scenario"], job["goalkeeper"], job["attackers"])
    connection.sendall(json.dumps(vars(scenario.facts)).encode() + b"\n")
    arrays = SharedArrays(job["num_envs"], len(scenario.facts.agents), memory)
    matches = {
        i: Match(engine, scenario, job["checkpoints"], job["limit"], arrays.obs[i], arrays.rewards[i])
        for i in job["matches"]
    }
    while command := connection.recv(1):
        for i, match in matches.items():
            if command == b"r":
                match.reset(int(arrays.seeds[i]))
            elif arrays.playing[i]:
                match.step(arrays.actions[i].tolist())
            else:
                continue
            arrays.goals[i] = match.goals
            arrays.terminated[i], arrays.truncated[i] = match.terminated, match.truncated
            arrays.playing[i] = not (match.terminated or match.truncated)
        connection.sendall(b".")


def main() -> None:
    # The parent decides when to stop; Ctrl-C and a scheduler's warning signals reach the whole process group.
    for one in _IGNORED:
        signal.signal(one, signal.SIG_IGN)
    faulthandler.enable()
    gc.disable()  # the engine's objects are freed by reference counting; looking for cycles costs 5 % of a step
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        serve(connection, int(sys.argv[2]), json.loads(sys.argv[3]))
    os._exit(0)  # the engine's own teardown takes long and there is nothing to save


if __name__ == "__main__":
    main()
