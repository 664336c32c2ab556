"""The process that plays the matches of the football environment, each in its own engine, in several threads.

The parent starts this file as a script (see process.py) and not as a module of the package. The process then loads neither
torch nor gym, only numpy and the engine (30 MB, 0.2 s), and inherits no thread, lock or CUDA context. This file must
therefore import nothing from qllm_exp.

A thread takes the next match that has not played its step yet, so that no core waits while a match is left. The engine
releases Python's lock during a step (97 % of the time), and its matches share only what does not change.

A step (rewards, endings, restarts of a stalled game) follows gfootball 2.10.2: FootballEnvCore.step,
CheckpointRewardWrapper and Simple115StateWrapper with fixed positions. The tests compare the two step by step.
"""

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
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# The engine's names of the 19 actions, in the order of gfootball's default action set.
ACTIONS: Final = (
    "idle",
    "left",
    "top_left",
    "top",
    "top_right",
    "right",
    "bottom_right",
    "bottom",
    "bottom_left",
    "long_pass",
    "high_pass",
    "short_pass",
    "shot",
    "sprint",
    "release_direction",
    "release_sprint",
    "sliding",
    "dribble",
    "release_dribble",
)
OBS_DIM: Final = 115  # simple115v2
PLAYERS: Final = 11  # players of a team that simple115v2 has room for
BALL = slice(88, 90)  # columns of the ball's x and y
ACTIVE, MODE = slice(97, 108), slice(108, 115)  # columns of the controlled player and the game mode; 0-96 are shared
CHECKPOINTS, CHECKPOINT_REWARD = 10, 0.1
# Steps without play after which the agents' actions are overridden to restart the game, as gfootball does: at _STALLED
# by a short pass, then the player with the ball runs to the right, and from _STALLED_LONG on to the left.
_STALLED, _STALLED_LONG = 20, 30
_MAX_WAIT_CALLS = 10_000  # engine calls without the ball in play after which the engine is considered stuck
_GOALKEEPER = "e_PlayerRole_GK"
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class ScenarioInfo:
    """What the parent needs to know about a scenario.

    Attributes:
        roles: role of each player of our team, in the engine's order, e.g. 'GK', 'CM'.
        agents: indices of the players that agents 0, 1, ... control, ascending.
        opponents: number of opponents.
        duration: steps after which the scenario itself ends.
        ends_out_of_play: an episode ends when the ball leaves the pitch, or at a foul.
        ends_on_turnover: an episode ends when the other team wins the ball.
    """

    roles: list[str]
    agents: list[int]
    opponents: int
    duration: int
    ends_out_of_play: bool
    ends_on_turnover: bool


class SharedArrays:
    """Arrays in the memory that the parent and the worker share, with one row per match.

    The parent writes `seeds` and `actions`, the worker the other arrays.

    Args:
        num_envs: number of matches, N.
        n_agents: number of agents, n.
        fd: file descriptor of the shared memory; enlarged if it is too small.

    Attributes:
        seeds: [N] int64, the engine's seed of the next episode.
        actions: [N, n] int64, action indices.
        obs: [N, n, 115] float32.
        rewards: [N, n] float32, the reward of each agent.
        goals: [N, 2] int32, goals of our team and of the opponents.
        playing: [N] bool, the episode has not ended.
        terminated: [N] bool.
        truncated: [N] bool.
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
    """Builds the engine's configuration from a scenario file of gfootball, and assigns players to agents.

    The players that no agent controls are marked as not controllable. The engine then never moves control from one
    player to another during an episode, and its controllers are the controlled players in ascending order.

    A scenario file calls the methods `config`, `SetTeam`, `AddPlayer` and `SetBallPosition`.

    Args:
        engine: the module gfootball_engine.
        name: a scenario, e.g. 'academy_3_vs_1_with_keeper'.
        goalkeeper: also control our goalkeeper.
        attackers: control only the last `attackers` field players of the scenario's list; None: all.

    Attributes:
        info: what the parent needs to know about the scenario.
    """

    def __init__(self, engine: Any, name: str, goalkeeper: bool, attackers: int | None) -> None:
        self._engine = engine
        self._team = engine.e_Team.e_Left
        self._building = threading.Lock()  # a configuration grows in this object, and matches build theirs in threads
        self._build_scenario = _scenario_module(name).build_scenario
        self._agents: list[int] = []
        config = self.build(0)
        roles = [str(player.role) for player in config.left_team]
        field_players = [i for i, role in enumerate(roles) if role != _GOALKEEPER]
        if attackers:
            self._agents = field_players[-attackers:]
        elif goalkeeper:
            self._agents = list(range(len(roles)))
        else:
            self._agents = field_players
        self.info = ScenarioInfo(
            [role.removeprefix("e_PlayerRole_") for role in roles],
            self._agents,
            len(config.right_team),
            config.game_duration + 1,  # the engine counts from -1 and stops at its game_duration
            config.end_episode_on_out_of_play,
            config.end_episode_on_possession_change,
        )

    def build(self, seed: int) -> Any:
        """Build a new configuration for one episode: the engine modifies the one that it receives.

        Args:
            seed: the engine's seed. Its lowest bit also decides which team moves first.
        """
        with self._building:
            config = self._config = self._engine.ScenarioConfig.make()
            self._build_scenario(self)
        config.real_time = False
        config.left_agents, config.right_agents = len(self._agents), 0
        for i, player in enumerate(config.left_team):
            player.controllable = i in self._agents
        config.game_engine_random_seed = seed
        config.reverse_team_processing = bool(seed % 2)
        return config

    # Methods that a scenario file calls.

    def config(self) -> Any:
        """The configuration that is being built."""
        return self._config

    def SetTeam(self, team: Any) -> None:  # noqa: N802 - the name that scenario files use
        """Select the team that further players are added to."""
        self._team = team

    def AddPlayer(self, x: float, y: float, role: Any, lazy: bool = False, controllable: bool = True) -> None:  # noqa: N802
        """Add a player at (x, y) to the selected team."""
        side = self._config.left_team if self._team == self._engine.e_Team.e_Left else self._config.right_team
        side.append(self._engine.FormationEntry(x, y, role, lazy, controllable))

    def SetBallPosition(self, ball_x: float, ball_y: float) -> None:  # noqa: N802
        """Place the ball."""
        self._config.ball_position[0] = ball_x
        self._config.ball_position[1] = ball_y


class Match:
    """One match in one engine, from our team's point of view.

    Args:
        engine: the module gfootball_engine.
        scenario: the scenario to play.
        checkpoints: give checkpoint rewards in addition to those for goals.
        limit: steps after which an episode is truncated, in addition to the scenario's own duration.
        obs: [n, 115] float32, receives the observations.
        rewards: [n] float32, receives the reward of each agent.

    Attributes:
        obs: the array passed in, with the current observations.
        rewards: the array passed in, with the rewards of the last step.
        terminated: the last step ended the task.
        truncated: the last step reached a time limit.
        goals: goals of our team and of the opponents.
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
        self._engine_actions = [getattr(engine.e_BackendAction, name) for name in ACTIONS]
        self._running = engine.GameState.game_running
        self._n = len(scenario.info.agents)
        config = scenario.build(0)
        self._ends_on_goal: bool = config.end_episode_on_score
        self._ends_out_of_play = scenario.info.ends_out_of_play
        self._ends_on_turnover = scenario.info.ends_on_turnover
        self._duration: int = config.game_duration
        self._facts = np.zeros(6 + self._n, np.int32)
        self._env = engine.GameEnv()
        self._env.game_config.physics_steps_per_frame = 10
        self._env.start_game()

    def reset(self, seed: int) -> None:
        """Start an episode. Equal seeds and equal actions give equal episodes."""
        self._env.state = self._running
        self._env.reset(self._scenario.build(seed), False)
        self._collected = [0] * self._n
        self._steps = self._stalled_steps = self._goal_difference = 0
        self._last_owner = -1
        self.terminated = self.truncated = False
        self.rewards[:] = 0.0
        self._advance(0)

    def step(self, actions: list[int]) -> None:
        """Play one step.

        Args:
            actions: an action index per agent.
        """
        if self._stalled_steps >= _STALLED:
            actions = [self._restart_action(agent) for agent in range(self._n)]
        perform = self._env.perform_action
        for agent, action in enumerate(actions):
            perform(self._engine_actions[action], True, agent)
        previous_mode = self._mode if self._steps else -1  # the start of a scenario is not an interruption
        self._advance(1)
        self._steps += 1
        self._update_ending(previous_mode)
        self._update_rewards()

    def _restart_action(self, agent: int) -> int:
        """The action that makes an agent restart a stalled game."""
        if self._stalled_steps == _STALLED:
            return ACTIONS.index("short_pass")
        if self._owner == 0 and self._controlled[agent] == self._owner_player:
            return ACTIONS.index("right" if self._stalled_steps < _STALLED_LONG else "left")
        return ACTIONS.index("idle")

    def _advance(self, steps: int) -> None:
        """Run the engine for `steps` steps and on until the ball is in play, and observe."""
        if not self._env.advance(steps, _MAX_WAIT_CALLS, self.obs, self._facts):
            raise RuntimeError(f"the football engine did not bring the ball into play within {_MAX_WAIT_CALLS} calls")
        self._read(self._facts.tolist())

    def _read(self, facts: list[int]) -> None:
        """Keep what endings and rewards need of what the engine's `advance` reports."""
        self._owner, self._owner_player, scored, conceded, self._mode, self._clock, *self._controlled = facts
        self.goals = scored, conceded

    def _update_ending(self, previous_mode: int) -> None:
        """Decide whether the step ended the episode, and how.

        Args:
            previous_mode: the game mode before the step; -1 in the first step.
        """
        terminated = self._ends_on_goal and max(self.goals) > 0
        terminated |= self._ends_out_of_play and self._mode != 0 and previous_mode == 0
        if self._owner != -1:
            terminated |= self._ends_on_turnover and self._last_owner not in (-1, self._owner)
            self._last_owner = self._owner
        self._stalled_steps = self._stalled_steps + 1 if self._mode != 0 else 0
        self.terminated = terminated
        # The end of the clock is not a property of the state: value targets bootstrap through it.
        self.truncated = not terminated and (self._steps >= self._limit or self._clock >= self._duration)

    def _update_rewards(self) -> None:
        """Write the rewards of the step, one per agent."""
        goal_difference = self.goals[0] - self.goals[1]
        scored = goal_difference - self._goal_difference
        self._goal_difference = goal_difference
        self.rewards[:] = scored
        if not self._checkpoints or (scored != 1 and self._owner != 0):
            return
        for agent, previous in enumerate(self._collected):
            current = previous
            if scored == 1:
                current = CHECKPOINTS  # a goal pays all remaining checkpoints
            elif self._owner_player == self._controlled[agent]:
                current = max(previous, self._circles_entered())
            if current > previous:
                self.rewards[agent] += CHECKPOINT_REWARD * (current - previous)
                self._collected[agent] = current

    def _circles_entered(self) -> int:
        """Number of the ten circles around the opponents' goal that the ball is in; their radii are 0.99 to 0.19."""
        x, y = self.obs[0, BALL].tolist()
        distance = ((x - 1) ** 2 + y**2) ** 0.5
        return sum(distance <= 0.99 - 0.8 / (CHECKPOINTS - 1) * circle for circle in range(CHECKPOINTS))


def _scenario_module(name: str) -> Any:
    """Import a scenario file of gfootball.

    `import gfootball` would load gym and OpenCV. The folder of scenarios is therefore imported as a package of its own.
    """
    package = "_gfootball_scenarios"
    if package not in sys.modules:
        gfootball = importlib.util.find_spec("gfootball")
        assert gfootball is not None and gfootball.submodule_search_locations
        folder = os.path.join(next(iter(gfootball.submodule_search_locations)), "scenarios")
        spec = importlib.util.spec_from_file_location(
            package, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")


def play(matches: list[Match], arrays: SharedArrays, turns: Iterator[int], reset: bool) -> None:
    """Play the matches whose indices are left in `turns`, which other threads take from, too.

    Args:
        matches: all matches.
        arrays: the memory shared with the parent.
        turns: indices of the matches that are left.
        reset: start an episode instead of playing a step.
    """
    for i in turns:
        match = matches[i]
        if reset:
            match.reset(int(arrays.seeds[i]))
        else:
            match.step(arrays.actions[i].tolist())
        arrays.goals[i] = match.goals
        arrays.terminated[i], arrays.truncated[i] = match.terminated, match.truncated
        arrays.playing[i] = not (match.terminated or match.truncated)


def serve(connection: socket.socket, memory: int, job: dict[str, Any]) -> None:
    """Execute the parent's commands until it closes the connection or dies.

    Args:
        connection: socket to the parent. A command is one byte: 'r' resets, 's' steps. The reply is one byte, too.
        memory: file descriptor of the shared memory.
        job: what to play: the arguments of `WorkerProcess`.
    """
    engine = importlib.import_module("gfootball_engine")
    scenario = Scenario(engine, job["scenario"], job["goalkeeper"], job["attackers"])
    connection.sendall(json.dumps(vars(scenario.info)).encode() + b"\n")
    arrays = SharedArrays(job["num_envs"], len(scenario.info.agents), memory)
    matches = [
        Match(engine, scenario, job["checkpoints"], job["limit"], obs, rewards)
        for obs, rewards in zip(arrays.obs, arrays.rewards, strict=True)
    ]
    # The engine has installed a handler that calls exit, where a crash may wait for a lock forever.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    faulthandler.enable()
    helpers = ThreadPoolExecutor(max(1, job["threads"] - 1))  # starts a thread when there is work for it
    while command := connection.recv(1):
        indices = [i for i in range(len(matches)) if command == b"r" or arrays.playing[i]]
        turns = iter(indices)
        count = min(job["threads"], len(indices)) - 1
        helping = [helpers.submit(play, matches, arrays, turns, command == b"r") for _ in range(count)]
        play(matches, arrays, turns, command == b"r")
        for helper in helping:
            helper.result()
        connection.sendall(b".")


def main() -> None:
    """Run a worker: argv is the socket's file descriptor, the shared memory's, and the job as JSON."""
    # The parent decides when to stop; Ctrl-C and a scheduler's warning signals reach the whole process group.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # the engine's objects are freed by reference counting; the search for cycles costs 5 % of a step
    connection = socket.socket(fileno=int(sys.argv[1]))
    status = 0
    try:
        serve(connection, int(sys.argv[2]), json.loads(sys.argv[3]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent has died
    except Exception:
        traceback.print_exc()
        status = 1
    os._exit(status)  # the engine's own teardown is slow, other threads may be in it, and there is nothing to save


if __name__ == "__main__":
    main()
