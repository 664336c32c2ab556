"""Inputs of the agents' networks: the observation, and optionally the agent's index and its last action.

Shapes: [...] any leading dimensions, T steps, B episodes, N environment copies, n agents, A actions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.config.schema import AlgorithmConfig as Config
from qllm_exp.envs.base import TeamEnv


class AgentInputs:
    """Assembles the inputs of the agents' networks.

    Args:
        config: The `algorithm` group: whether an agent sees its own index and its own last action, both one-hot.
        env: The environment, for its sizes and its device.

    Attributes:
        size: Number of inputs of each agent.
        identity: One-hot index of each agent, [n, n].
    """

    def __init__(self, config: Config, env: TeamEnv) -> None:
        self.agent_id, self.last_action = config.agent_id, config.last_action
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.identity = torch.eye(env.n_agents, device=env.device)
        self.size = env.obs_dim
        if config.agent_id:
            self.size += env.n_agents
        if config.last_action:
            self.size += env.n_actions

    def initial_last_action(self, num_envs: int) -> Tensor | None:
        """Encoded last actions at the start of an episode: zeros [N, n, A]; None if agents do not see them."""
        if not self.last_action:
            return None
        return torch.zeros(num_envs, self.n_agents, self.n_actions, device=self.device)

    def encode_last_action(self, actions: Tensor, like: Tensor) -> Tensor | None:
        """One-hot encoding of the actions just taken.

        Args:
            actions: [..., n] int64.
            like: A tensor of the dtype to return.

        Returns:
            [..., n, A]; None if agents do not see their last action.
        """
        return F.one_hot(actions, self.n_actions).to(like.dtype) if self.last_action else None

    def step_inputs(self, obs: Tensor, last_action: Tensor | None) -> Tensor:
        """Inputs of single steps.

        Args:
            obs: Observations, or other features of each agent, [..., n, obs_dim].
            last_action: Encoded last actions, [..., n, A]; None leaves them out.

        Returns:
            [..., n, size].
        """
        parts = [obs]
        if self.agent_id:
            parts.append(self.identity.to(obs.dtype).expand(*obs.shape[:-1], self.n_agents))
        if last_action is not None:
            parts.append(last_action)
        return torch.cat(parts, -1)

    def sequence_inputs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Inputs along whole episodes.

        Args:
            obs: [T + 1, B, n, obs_dim].
            actions: [T, B, n] int64.

        Returns:
            [T + 1, B, n, size].
        """
        encoded = self.encode_last_action(actions, obs)
        if encoded is None:
            return self.step_inputs(obs, None)
        return self.step_inputs(obs, torch.cat([torch.zeros_like(encoded[:1]), encoded]))
