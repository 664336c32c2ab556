"""What an agent's network sees: its observation, who it is, and what it did last."""

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.config.schema import AlgorithmConfig as Config
from qllm_exp.envs.base import TeamEnv


class AgentInputs:
    """Puts an agent's inputs together. `size`: how many there are.

    Args:
        config: says whether an agent sees its own index and its own last action, both one-hot.
    """

    def __init__(self, config: Config, env: TeamEnv) -> None:
        self.agent_id, self.last_action = config.agent_id, config.last_action
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.size = env.obs_dim + env.n_agents * config.agent_id + env.n_actions * config.last_action

    def before(self, num_envs: int) -> Tensor | None:
        """What the agents did last when an episode begins: nothing, [N, n, A]; None where they do not see it."""
        if not self.last_action:
            return None
        return torch.zeros(num_envs, self.n_agents, self.n_actions, device=self.device)

    def after(self, actions: Tensor, like: Tensor) -> Tensor | None:
        """What they did last once they have acted: [N, n] int64 -> [N, n, A], as numbers of the type of `like`."""
        return F.one_hot(actions, self.n_actions).to(like.dtype) if self.last_action else None

    def at(self, obs: Tensor, last: Tensor | None) -> Tensor:
        """[..., n, size] from obs [..., n, obs_dim] and what they did last."""
        parts = [obs]
        if self.agent_id:
            identity = torch.eye(self.n_agents, device=self.device, dtype=obs.dtype)
            parts.append(identity.expand(*obs.shape[:-1], self.n_agents))
        if last is not None:
            parts.append(last)
        return torch.cat(parts, -1)

    def along(self, obs: Tensor, actions: Tensor) -> Tensor:
        """[T + 1, B, n, size] along episodes, from obs [T + 1, B, n, obs_dim] and actions [T, B, n]."""
        taken = self.after(actions, obs)
        return self.at(obs, None if taken is None else torch.cat([torch.zeros_like(taken[:1]), taken]))
