"""Qatten (Yang et al., arXiv 2002.03939): weighted sums of the agents' Qs, weighted by attention of the state to the agents.

    Q_tot = c(s) + sum_h |w_h(s)| sum_i lambda_{i,h}(s) Q_i
    lambda_{.,h} = softmax_i(query_h(s) . key_h(s_i) / sqrt(E))

query_h, w and c are networks of the state with one hidden layer, key_h is linear in s_i, the agent's own part of the state.
All weights are non-negative, so dQ_tot/dQ_i >= 0.

Deviations from the publication:
1. s_i are the fields that the environment's state layout names as the agent's, aligned by their names; one that only other agents
   have is 0. Where the layout names none for some agent, s_i is the whole state and the agent's index, one-hot.
2. The attention's logits are not regularised. The public code does so; the equations do not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.layers import ParallelLinear, side_by_side


@dataclass
class Config(schema.MixerConfig):
    name: str = "qatten"
    heads: int = schema.number(4, 1)
    hidden: int = schema.number(64, 1)
    embed: int = schema.number(32, 1)


class Qatten(Mixer):
    """The attention and the heads.

    Args:
        n_agents: number of Qs. layout: names the columns of the state.
        heads: weighted sums H. hidden: hidden width of the networks of queries and heads' weights.
        embed: width E of queries and keys, and of the hidden layer of c.
    """

    monotone = True
    learns = True

    def __init__(self, n_agents: int, layout: StateLayout, heads: int = 4, hidden: int = 64, embed: int = 32) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.own = OwnState(n_agents, layout)
        self.heads, self.hidden, self.embed = heads, hidden, embed
        # Everything that reads the state directly is one product: hidden layers of the queries, of w and of c.
        self.parts = (heads * hidden, hidden, embed)
        self.from_state = nn.Linear(layout.size, sum(self.parts))
        self.query = ParallelLinear(heads, hidden, embed)
        self.key = nn.Linear(self.own.width, heads * embed)
        self.head_weights = nn.Linear(hidden, heads)
        self.bias = nn.Linear(embed, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        lead, embed = state.shape[:-1], self.embed
        own = self.own(state).flatten(0, -3).permute(2, 1, 0).flatten(1)  # [width, n R]
        (hidden,) = side_by_side(self.from_state, state.flatten(0, -2).T, sum(self.parts)).relu_()
        query, head, bias = hidden.split(self.parts)
        query = self.query(query.view(self.heads, self.hidden, -1))  # [H, E, R]
        key = side_by_side(self.key, own, embed).view(self.heads, embed, self.n_agents, -1)  # [H, E, n, R]
        logits = (query.unsqueeze(2) * key).sum(1) / math.sqrt(embed)  # [H, n, R]
        heads = self.head_weights(head.T).abs().T.unsqueeze(1)  # [H, 1, R]
        weights = (logits.softmax(1) * heads).sum(0).T.view(*lead, self.n_agents)
        q_tot: Tensor = torch.linalg.vecdot(agent_qs, weights) + self.bias(bias.T).view(lead)
        return q_tot


class OwnState(nn.Module):
    """Each agent's own part of the state: [..., S] -> [..., n, width]."""

    columns: Tensor  # [n, width] int64, columns of the state
    present: Tensor  # [n, width] 1 where the agent has the field, else 0

    def __init__(self, n_agents: int, layout: StateLayout) -> None:
        super().__init__()
        self.n_agents = n_agents
        fields = [{one.name: one for one in layout if (one.entity, one.index) == ("agent", i)} for i in range(n_agents)]
        widths = {name: len(one.components) for of_agent in fields for name, one in of_agent.items()}
        self.by_name = all(fields)
        self.width = sum(widths.values()) if self.by_name else layout.size + n_agents
        places = [
            [
                of_agent[name].start + k if name in of_agent else -1
                for name, width in widths.items()
                for k in range(width)
            ]
            for of_agent in fields
        ]
        found = torch.tensor(places if self.by_name else [[]])
        self.register_buffer("columns", found.clamp(min=0).long(), persistent=False)
        self.register_buffer("present", (found >= 0).float(), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        if self.by_name:
            return state[..., self.columns] * self.present
        identity = torch.eye(self.n_agents, dtype=state.dtype, device=state.device)
        lead = state.shape[:-1]
        whole = state.unsqueeze(-2).expand(*lead, self.n_agents, -1)
        return torch.cat([whole, identity.expand(*lead, -1, -1)], -1)


def make(config: Config, env: TeamEnv) -> Qatten:
    return Qatten(env.n_agents, env.layout, config.heads, config.hidden, config.embed)
