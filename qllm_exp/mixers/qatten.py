"""Qatten (Yang et al., arXiv 2002.03939): weighted sums of the individual Qs, with weights from attention over the agents.

    Q_tot = c(s) + sum_h |w_h(s)| sum_i lambda_{i,h}(s) Q_i
    lambda_{.,h} = softmax_i(query_h(s) . key_h(s_i) / sqrt(E))

query_h, w and c are networks of the state with one hidden layer. key_h is linear in s_i, the agent's own part of the state.
All weights are non-negative, so dQ_tot/dQ_i >= 0.

Deviations from the publication:
1. s_i consists of the fields that the environment's state layout assigns to the agent. Fields are aligned by name; a field that
   only other agents have is 0. If the layout assigns no field to some agent, s_i is the whole state and the agent's one-hot index.
2. The attention logits are not regularised. The public code regularises them; the equations do not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.layers import ParallelLinear, grouped_linear


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=qatten`; conf/mixer/qatten.yaml explains them."""

    name: str = "qatten"
    heads: int = schema.number(4, 1)
    hidden: int = schema.number(64, 1)
    embed: int = schema.number(32, 1)


class Qatten(Mixer):
    """Multi-head attention of the state over the agents.

    Shapes in comments: H heads, E width of queries and keys, n agents, R rows (all leading dimensions flattened).

    Args:
        n_agents: Number of individual Qs n.
        layout: Names of the state's columns.
        heads: Number of weighted sums H.
        hidden: Hidden width of the networks of the queries and of the heads' weights.
        embed: Width E of queries and keys, and of the hidden layer of c.
    """

    monotone = True
    learns = True

    def __init__(self, n_agents: int, layout: StateLayout, heads: int = 4, hidden: int = 64, embed: int = 32) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.own = OwnState(n_agents, layout)
        self.heads, self.hidden, self.embed = heads, hidden, embed
        # All layers that read the state are one product: hidden layers of the queries, of w and of c.
        self.parts = (heads * hidden, hidden, embed)
        self.from_state = nn.Linear(layout.size, sum(self.parts))
        self.query = ParallelLinear(heads, hidden, embed)
        self.key = nn.Linear(self.own.width, heads * embed)
        self.head_weights = nn.Linear(hidden, heads)
        self.bias = nn.Linear(embed, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot [...] of individual Qs [..., n] in states [..., state_dim]."""
        leading, embed = state.shape[:-1], self.embed
        own_state = self.own(state).flatten(0, -3).permute(2, 1, 0).flatten(1)  # [width, n R]
        (hidden,) = grouped_linear(self.from_state, state.flatten(0, -2).T, sum(self.parts)).relu_()
        query_hidden, head_hidden, bias_hidden = hidden.split(self.parts)
        query = self.query(query_hidden.view(self.heads, self.hidden, -1))  # [H, E, R]
        key = grouped_linear(self.key, own_state, embed).view(self.heads, embed, self.n_agents, -1)  # [H, E, n, R]
        logits = (query.unsqueeze(2) * key).sum(1) / math.sqrt(embed)  # [H, n, R]
        head_weights = self.head_weights(head_hidden.T).abs().T.unsqueeze(1)  # [H, 1, R]
        weights = (logits.softmax(1) * head_weights).sum(0).T.view(*leading, self.n_agents)
        q_tot: Tensor = torch.linalg.vecdot(agent_qs, weights) + self.bias(bias_hidden.T).view(leading)
        return q_tot


class OwnState(nn.Module):
    """Each agent's own part of the state: [..., state_dim] -> [..., n, width].

    Args:
        n_agents: Number of agents n.
        layout: Names of the state's columns.

    Attributes:
        by_name: Whether the layout assigns fields to every agent. Otherwise the output is the whole state and the agent's
            one-hot index.
        width: Size of an agent's part.
        columns: Columns of the state, [n, width] int64.
        present: 1 where the agent has the field, else 0, [n, width].
    """

    columns: Tensor
    present: Tensor

    def __init__(self, n_agents: int, layout: StateLayout) -> None:
        super().__init__()
        self.n_agents = n_agents
        agents_fields = [
            {field.name: field for field in layout if (field.entity, field.index) == ("agent", i)}
            for i in range(n_agents)
        ]
        self.by_name = all(agents_fields)
        widths: dict[str, int] = {}
        for fields in agents_fields:
            widths |= {name: len(field.components) for name, field in fields.items()}
        self.width = sum(widths.values()) if self.by_name else layout.size + n_agents
        rows: list[list[int]] = []  # per agent, the column of each component, -1 where the agent lacks the field
        for fields in agents_fields if self.by_name else [{}]:
            row: list[int] = []
            for name, width in widths.items():
                start = fields[name].start if name in fields else None
                row += [-1 if start is None else start + k for k in range(width)]
            rows.append(row)
        columns = torch.tensor(rows)
        self.register_buffer("columns", columns.clamp(min=0).long(), persistent=False)
        self.register_buffer("present", (columns >= 0).float(), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Own parts [..., n, width] of states [..., state_dim]."""
        if self.by_name:
            return state[..., self.columns] * self.present
        identity = torch.eye(self.n_agents, dtype=state.dtype, device=state.device)
        leading = state.shape[:-1]
        copies = state.unsqueeze(-2).expand(*leading, self.n_agents, -1)
        return torch.cat([copies, identity.expand(*leading, -1, -1)], -1)


def make(config: Config, env: TeamEnv) -> Qatten:
    """Build the mixer of `mixer=qatten`."""
    return Qatten(env.n_agents, env.layout, config.heads, config.hidden, config.embed)
