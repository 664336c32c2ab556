"""The networks of a team: recurrent or feed-forward, one that all agents share or one for each.

Shapes: T steps, N copies or episodes, n agents, R rows (each one agent of one episode), I inputs, O outputs, H hidden units.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.config.schema import TrainConfig
from qllm_exp.networks.recurrent import RecurrentAgent


class FeedForwardAgent(nn.Module):
    """Linear and ReLU, twice, then Linear. It remembers nothing: its hidden state has no elements."""

    def __init__(self, n_inputs: int, n_outputs: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(n_inputs, hidden)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.fc_out = nn.Linear(hidden, n_outputs)

    def initial_hidden(self, rows: int, device: torch.device | str) -> Tensor:
        """[R, 0]."""
        return torch.zeros(rows, 0, dtype=self.fc_in.weight.dtype, device=device)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients: inputs [R, I] -> outputs [R, O], and the same nothing."""
        return self.unroll(inputs), hidden

    def unroll(self, inputs: Tensor) -> Tensor:
        """Outputs [..., O] of inputs [..., I], differentiable."""
        x: Tensor = self.fc_out(F.relu(self.fc_hidden(F.relu(self.fc_in(inputs)))))
        return x


class TeamNetwork(nn.Module):
    """Outputs of every agent from its own inputs.

    Args:
        train: says which network, how wide, and whether the agents share it.
    """

    def __init__(self, n_agents: int, n_inputs: int, n_outputs: int, train: TrainConfig) -> None:
        super().__init__()
        kind = RecurrentAgent if train.network == "gru" else FeedForwardAgent
        count = 1 if train.share_parameters else n_agents
        self.n_agents = n_agents
        self.members = nn.ModuleList(kind(n_inputs, n_outputs, train.hidden) for _ in range(count))

    def initial_hidden(self, num_envs: int, device: torch.device | str) -> Tensor:
        """Hidden states [N, n, H] before the first step of an episode."""
        return self._each()[0].initial_hidden(num_envs * self.n_agents, device).view(num_envs, self.n_agents, -1)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients: inputs [N, n, I], hidden [N, n, H] -> outputs [N, n, O], next hidden."""
        lead = inputs.shape[:-1]
        each = self._each()
        if len(each) == 1:
            out, last = each[0].step(inputs.flatten(0, 1), hidden.flatten(0, 1))
            return out.view(*lead, -1), last.view(*lead, -1)
        pairs = [one.step(inputs[:, i].contiguous(), hidden[:, i].contiguous()) for i, one in enumerate(each)]
        return torch.stack([out for out, _ in pairs], 1), torch.stack([last for _, last in pairs], 1)

    def unroll(self, inputs: Tensor) -> Tensor:
        """Outputs [T, N, n, O] along whole episodes of inputs [T, N, n, I], differentiable."""
        each = self._each()
        if len(each) == 1:
            return each[0].unroll(inputs.flatten(1, 2)).view(*inputs.shape[:-1], -1)
        return torch.stack([one.unroll(inputs[:, :, i].contiguous()) for i, one in enumerate(each)], 2)

    def _each(self) -> list[RecurrentAgent | FeedForwardAgent]:
        return list(self.members)  # type: ignore[arg-type]  # nn.ModuleList forgets what it holds
