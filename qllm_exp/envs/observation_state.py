"""`env.state=observations`: the observations of all agents, in a row, as the global state of any environment.

EPyMARL and QLLM's published code give this state to their mixers on MPE and football (arXiv 2504.12961), so that functions
written for their code read its columns.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.contract import CONTRACT, check_moment
from qllm_exp.envs.layout import StateLayout
from qllm_exp.errors import ContractError


class ObservationState(TeamEnv):
    """An environment with another global state: the observation of agent 0, then that of agent 1, and so on.

    Observations that the environment pads with zeros to one length keep these zeros, as in EPyMARL. The episodes are those of
    the environment.

    Args:
        env: the environment. Its `observation_fields` name the columns.

    Raises:
        ContractError: its `observation_fields` do not name each column of an observation once.
        UserError: its observations cannot be a global state.
    """

    state_kind: ClassVar[str] = "observations"

    def __init__(self, env: TeamEnv) -> None:
        self._env = env
        self.num_envs, self.n_agents, self.n_actions = env.num_envs, env.n_agents, env.n_actions
        self.obs_dim, self.episode_limit, self.device = env.obs_dim, env.episode_limit, env.device
        self.layout = _layout(env)
        self.task = replace(
            env.task,
            goal=(
                f"{env.task.goal} The global state consists of what the {env.n_agents} agents observe, that of agent 0 first, "
                "and of nothing else."
            ),
        )

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        start = self._env.reset()
        check_moment(self._env, start, "reset")
        return start._replace(state=_in_a_row(start.obs))

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]."""
        step = self._env.step(actions)
        return step._replace(state=_in_a_row(step.obs))

    def seed(self, seed: int) -> None:
        """Seed the environment."""
        self._env.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """That of the environment."""
        return self._env.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the environment from a `state_dict`."""
        self._env.load_state_dict(saved)

    def episode_metrics(self) -> dict[str, Tensor]:
        """Those of the environment."""
        return self._env.episode_metrics()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _in_a_row(obs: Tensor) -> Tensor:
    """The observations [N, n, obs_dim] as states [N, n * obs_dim], in memory of their own."""
    return obs.flatten(1).clone()


def _layout(env: TeamEnv) -> StateLayout:
    """Layout of the observations in a row."""
    fields = [env.observation_fields(agent) for agent in range(env.n_agents)]
    widths = [sum(len(field.components) for field in named) for named in fields]
    if any(width != env.obs_dim for width in widths):
        raise ContractError(
            f"env={env.task.env}: observation_fields() names {widths} columns for the agents, expected obs_dim={env.obs_dim} "
            f"for each ({CONTRACT})."
        )
    return StateLayout.from_fields(field for named in fields for field in named)
