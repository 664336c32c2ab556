"""Digests of football episodes, to compare two builds of the engine bit for bit.

    .venv-gfootball/bin/python tests/bench/football_episodes.py --episodes 2 >tests/integration/football_episodes.json

plays on the engine of the Python that runs it and prints one digest per episode and scenario, as JSON. tests/bench/run.sh
compares the digests of gfootball as pip builds it with those of this package's build, over 300 episodes of every academy
scenario and 20,000 steps of 11_vs_11. A trained team plays once, and both builds repeat its actions:

    .venv/bin/python tests/bench/football_episodes.py --team RUN_FOLDER --episodes 100 >actions.json
    .venv-gfootball/bin/python tests/bench/football_episodes.py --actions actions.json >digests.json

tests/integration/test_grf_engine.py plays the first episodes and compares them with
the stored ones of the published engine.

A digest covers everything that the engine reports after every step, for all players of both teams and the ball, the
observations, rewards and endings of the environment, and saved states: one is taken in every episode, and the steps after
it are played a second time from it. Seeds are even and odd in turn, which changes the team that is processed first. Half
of the episodes are played with random actions, the others mostly run and shoot at the goal.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

WORKER = Path(__file__).parents[2] / "qllm_exp" / "envs" / "grf" / "worker.py"
ACADEMY = (
    "academy_3_vs_1_with_keeper",
    "academy_corner",
    "academy_counterattack_easy",
    "academy_counterattack_hard",
    "academy_empty_goal",
    "academy_empty_goal_close",
    "academy_pass_and_shoot_with_keeper",
    "academy_run_pass_and_shoot_with_keeper",
    "academy_run_to_score",
    "academy_run_to_score_with_keeper",
    "academy_single_goal_versus_lazy",
)
FULL = "11_vs_11_stochastic"
LIMIT = 400  # steps of an academy episode
FULL_LIMIT = 3000  # steps of a match of 11_vs_11
REPLAYED = 20  # steps that are played again from a saved state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=300, help="episodes of each academy scenario")
    parser.add_argument("--full-steps", type=int, default=0, help="at least so many steps of 11_vs_11")
    parser.add_argument("--scenario", action="append", help="only this scenario; may be repeated")
    parser.add_argument(
        "--team", metavar="RUN_FOLDER", help="print the actions of a finished run's team, and no digests"
    )
    parser.add_argument("--actions", metavar="FILE", help="play these actions in place of all other episodes")
    options = parser.parse_args()
    worker = load_worker()
    engine = importlib.import_module("gfootball_engine")
    digests: dict[str, list[str]] = {}
    if options.team:
        print(json.dumps(actions_of_team(worker, engine, Path(options.team), options.episodes)))
        sys.stdout.flush()
        os._exit(0)
    if options.actions:
        recorded = json.loads(Path(options.actions).read_text())
        match = build_match(worker, engine, recorded["scenario"], recorded["limit"])
        digests[recorded["scenario"]] = [
            play(match, episode, actions) for episode, actions in enumerate(recorded["actions"])
        ]
    for name in [] if options.actions else options.scenario or ACADEMY:
        match = build_match(worker, engine, name, LIMIT)
        digests[name] = [play(match, episode) for episode in range(options.episodes)]
    if options.full_steps:
        match = build_match(worker, engine, FULL, FULL_LIMIT)
        digests[FULL] = [play(match, episode) for episode in range(-(-options.full_steps // FULL_LIMIT))]
    print(
        json.dumps({"libc": " ".join(platform.libc_ver()), "machine": platform.machine(), "digests": digests}, indent=1)
    )
    sys.stdout.flush()
    os._exit(0)  # the engine's own teardown is slow


def load_worker() -> Any:
    """Return the module of the environment's workers, which needs nothing of this package."""
    spec = importlib.util.spec_from_file_location("football_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = worker
    spec.loader.exec_module(worker)
    return worker


def build_match(worker: Any, engine: Any, name: str, limit: int) -> Any:
    """Return a match of a scenario in which all of our players are agents."""

    class Scenario(worker.Scenario):  # type: ignore[misc]
        def EpisodeNumber(self) -> int:  # noqa: N802 - the name that scenario files use
            return 0

    scenario = Scenario(engine, name, True, None)
    agents = len(scenario.info.agents)
    obs, rewards = np.zeros((agents, worker.OBS_DIM), np.float32), np.zeros(agents, np.float32)

    class PublishedMatch(worker.Match):  # type: ignore[misc]
        """A match on the published engine, which has no `advance`."""

        def _advance(self, steps: int) -> None:
            for _ in range(steps):
                self._env.step()
            while not (info := self._env.get_info()).is_in_play:
                self._env.step()
            self.obs[:], facts = observe(info, agents)
            self._read(facts)

    match = worker.Match if hasattr(engine.GameEnv, "advance") else PublishedMatch
    return match(engine, scenario, True, limit, obs, rewards)


def observe(info: Any, agents: int) -> tuple[list[list[float]], list[int]]:
    """Return what the engine's `advance` writes, from what `get_info` returns: observations, and the other facts."""
    shared: list[float] = []
    for team in (info.left_team, info.right_team):
        padding = [-1.0] * 2 * (11 - len(team))
        shared += [player.position[axis] for player in team for axis in range(2)] + padding
        shared += [player.direction[axis] for player in team for axis in range(2)] + padding
    shared += [info.ball_position[axis] for axis in range(3)] + [info.ball_direction[axis] for axis in range(3)]
    shared += [info.ball_owned_team == owner for owner in (-1, 0, 1)]
    controlled = [info.left_controllers[agent].controlled_player for agent in range(agents)]
    mode = int(info.game_mode)
    own = [[player == i for i in range(11)] + [mode == i for i in range(7)] for player in controlled]
    facts = [info.ball_owned_team, info.ball_owned_player, info.left_goals, info.right_goals, mode, info.step]
    return [shared + columns for columns in own], facts + controlled


def actions_of_team(worker: Any, engine: Any, run: Path, episodes: int) -> dict[str, Any]:
    """Return the joint actions of a trained team in each of its episodes, with the scenario and the limit of an episode."""
    import torch

    from qllm_exp.envs import make_env
    from qllm_exp.explain.policy import load_policy
    from qllm_exp.runs.run_directory import RunDirectory

    config = RunDirectory(run).read_config().env
    limit: int = config.episode_limit  # type: ignore[attr-defined]
    env = make_env(config, 1, 0)
    policy, moment = load_policy(run, env), env.reset()
    match = build_match(worker, engine, config.task, limit)
    recorded = []
    for episode in range(episodes):
        match.reset(episode)
        policy.reset()
        recorded.append([])
        while not (match.terminated or match.truncated):
            actions = policy(torch.from_numpy(match.obs)[None], moment.state, moment.available_actions)[0].tolist()
            recorded[-1].append(actions)
            match.step(actions)
    return {"scenario": config.task, "limit": limit, "actions": recorded}


def play(match: Any, episode: int, actions: list[list[int]] | None = None) -> str:
    """Play an episode and return its digest.

    Args:
        match: the match.
        episode: its seed, and that of the actions.
        actions: joint actions to repeat, which end with the episode; None to choose them.
    """
    generator = np.random.default_rng(episode)
    agents = len(match.rewards)
    digest = hashlib.sha256()
    match.reset(episode)
    record(digest, match)
    saved_at, steps = int(generator.integers(60)), 0
    while not (match.terminated or match.truncated):
        if steps == saved_at:
            replay(digest, match, generator, agents)
        match.step(choose(generator, agents, purposeful=episode // 2 % 2 == 1) if actions is None else actions[steps])
        record(digest, match)
        steps += 1
    return digest.hexdigest()[:16]


def choose(generator: np.random.Generator, agents: int, purposeful: bool) -> list[int]:
    """Return an action per agent: random, or mostly a run at the goal with shots and passes."""
    if purposeful and generator.random() < 0.9:
        return [int(generator.choice([5, 5, 5, 9, 11, 12, 13]))] * agents
    return [int(action) for action in generator.integers(19, size=agents)]


def replay(digest: Any, match: Any, generator: np.random.Generator, agents: int) -> None:
    """Save the engine's state, play on, and play the same again from the saved state; the engine stands there again after it."""
    engine, perform = match._env, match._engine_actions
    joint_actions = [[int(action) for action in generator.integers(19, size=agents)] for _ in range(REPLAYED)]
    saved = engine.get_state("")  # its bytes are no part of the digest: some are memory that nothing has written
    seen = []
    for _ in range(2):
        engine.set_state(saved)
        part = hashlib.sha256()
        for joint_action in joint_actions:
            for agent, action in enumerate(joint_action):
                engine.perform_action(perform[action], True, agent)
            engine.step()
            report(part, engine.get_info())
        seen.append(part.hexdigest())
    if seen[0] != seen[1]:
        digest.update(b"the two continuations differ")
    digest.update(seen[0].encode())
    engine.set_state(saved)


def record(digest: Any, match: Any) -> None:
    """Add what a step has returned to the digest."""
    digest.update(match.obs.tobytes())
    digest.update(match.rewards.tobytes())
    digest.update(bytes([match.terminated, match.truncated]))
    report(digest, match._env.get_info())


def report(digest: Any, info: Any) -> None:
    """Add what the engine reports to the digest."""
    for player in (*info.left_team, *info.right_team):
        position, direction = player.position, player.direction
        numbers = (position[0], position[1], position[2], direction[0], direction[1], direction[2], player.tired_factor)
        digest.update(struct.pack("7f", *numbers))
        digest.update(bytes([player.has_card, player.is_active, player.designated_player]))
    for vector in (info.ball_position, info.ball_direction, info.ball_rotation):
        digest.update(struct.pack("3f", vector[0], vector[1], vector[2]))
    numbers = (info.left_goals, info.right_goals, info.ball_owned_team, info.ball_owned_player, int(info.game_mode))
    digest.update(struct.pack("7i", *numbers, info.is_in_play, info.step))


if __name__ == "__main__":
    main()
