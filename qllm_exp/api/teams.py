"""Environments and trained teams, and the episodes that they play."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from qllm_exp.envs.base import TeamEnv
    from qllm_exp.envs.layout import StateLayout
    from qllm_exp.explain.episodes import ActFunction
    from qllm_exp.explain.policy import Policy


def make_env(
    name: str, task: str | None = None, num_envs: int = 1, seed: int = 0, device: str = "cpu", **options: Any
) -> "TeamEnv":
    """Return copies of an environment that step together, with tensors in and out.

    Args:
        name: 'lbf', 'mpe', 'grf', 'matrix', 'pettingzoo', or a module of your own on PYTHONPATH.
        task: a task of that environment; None: its default.
        num_envs: number of copies N.
        seed: seed of the environment's random numbers.
        device: 'cpu' or 'cuda'.
        **options: further keys of conf/env/NAME.yaml, e.g. `episode_limit=100`.

    Returns:
        `reset() -> Observation` and `step(actions [N, n]) -> Step`; `layout` names every column of the global state, `task`
        describes the goal, the reward and the actions.

    Raises:
        UserError: an unknown name, task or option, or a simulator that is not installed.

    Examples:
        >>> env = qllm_exp.make_env("lbf", task="8x8-2p-2f-coop-2s", num_envs=4)
        >>> env.reset().state.shape
        torch.Size([4, 14])
    """
    from qllm_exp.config.load import load_run
    from qllm_exp.envs import env_module
    from qllm_exp.envs import make_env as build

    chosen = {"name": name, **options} if task is None else {"name": name, "task": task, **options}
    config = load_run({"env": chosen | {"num_envs": num_envs}}).env
    env_module(name).check(config)
    return build(config, num_envs, seed, device)


def load_policy(run: str | Path, env: "TeamEnv | None" = None, parameters: str = "best") -> "Policy":
    """Return the team that a finished run has trained.

    Args:
        run: directory of the run.
        env: the environment that it will play in; None: one copy of the run's own, as `policy.env`.
        parameters: 'best' parameters of the run's evaluations, or the 'last'.

    Returns:
        A callable (observations [N, n, obs_dim], state [N, S], available actions [N, n, A]) -> actions [N, n], which acts
        without exploration; `reset()` before each episode.

    Raises:
        UserError: the run is not finished, or was made by a version with other networks.

    Examples:
        >>> policy = qllm_exp.load_policy("runs/RUN")
        >>> steps = qllm_exp.play(policy.env, policy)
    """
    from dataclasses import replace

    from qllm_exp.envs import make_env as build
    from qllm_exp.errors import choose
    from qllm_exp.explain import policy
    from qllm_exp.runs.run_directory import RunDirectory

    choose("parameters", parameters, ("best", "last"))
    if env is None:
        env = build(replace(RunDirectory(Path(run)).read_config().env, num_envs=1), 1, 0)
    return policy.load_policy(Path(run), env, parameters)


def play(env: "TeamEnv", policy: "ActFunction | None" = None, episodes: int = 1, seed: int = 0) -> "pandas.DataFrame":
    """Play episodes in the first copy of an environment, and return a row per step.

    Args:
        env: the environment.
        policy: a team from `load_policy`, or any function of the same arguments; None: uniformly random actions.
        episodes: number of episodes, at least 1.
        seed: seed of the environment and of the random actions. Equal seeds give equal episodes.

    Returns:
        Columns `episode` (from 1), `step` (from 0), `reward` of the team, `action_0`, `action_1`, ... (index of each agent's
        action), and the global state in which the agents act, a column per name of `env.layout`, e.g. 'agent 0 position x'.

    Examples:
        >>> steps = qllm_exp.play(qllm_exp.make_env("lbf"), episodes=10)
        >>> steps.groupby("episode").reward.sum()
    """
    import pandas

    from qllm_exp.explain.episodes import play as play_episode
    from qllm_exp.explain.episodes import random_policy

    env.seed(seed)
    act = random_policy(seed, env.device) if policy is None else policy
    frames = []
    for number in range(1, episodes + 1):
        episode = play_episode(env, act, env.episode_limit)
        actions = {f"action_{agent}": column for agent, column in enumerate(episode.actions.T.numpy())}
        length = len(episode.rewards)
        steps = {"episode": number, "step": range(length), "reward": episode.rewards.double().numpy(), **actions}
        states = pandas.DataFrame(episode.states[:-1].numpy(), columns=state_columns(env.layout))
        frames.append(pandas.concat([pandas.DataFrame(steps), states], axis=1))
    return pandas.concat(frames, ignore_index=True)


def state_columns(layout: "StateLayout") -> list[str]:
    """Return the name of each column of the global state: 'agent 0 position x', 'agent 0 level'."""
    return [
        field.label if len(field.components) == 1 else f"{field.label} {component}"
        for field in layout
        for component in field.components
    ]
