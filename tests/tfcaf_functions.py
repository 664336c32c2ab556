"""Credit-assignment functions as a language model writes them, for the tests of tensor programs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Written:
    """A credit-assignment function as a language model would write it.

    Attributes:
        name: name for the tests.
        n_agents: columns of agents_q.
        state_dim: columns of global_state.
        affine: whether it is affine in q.
        source: Python source.
    """

    name: str
    n_agents: int
    state_dim: int
    affine: bool
    source: str

    def states(self, batch: int, seed: int = 0) -> Tensor:
        """Sample states [batch, state_dim]: integers and fractions from -1 to 6, so that codes such as -1 occur."""
        generator = torch.Generator().manual_seed(seed)
        integers = torch.randint(-1, 6, (batch, self.state_dim), generator=generator).float()
        return integers + (torch.rand(batch, self.state_dim, generator=generator) * (torch.arange(self.state_dim) % 2))

    def function(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Execute the source and return its function."""
        names: dict[str, object] = {}
        exec(self.source, names)
        return names.get("credit_assignment") or names["QLLMNetwork"]  # type: ignore[return-value]


VDN = Written(
    "vdn",
    3,
    4,
    True,
    """
def credit_assignment(agents_q, global_state):
    return agents_q.mean(dim=1, keepdim=True)
""",
)

SPREAD = Written(
    "spread_distance_softmax",
    3,
    18,
    True,
    '''
import torch
import torch.nn.functional as F

def credit_assignment(agents_q: torch.Tensor, global_state: torch.Tensor) -> torch.Tensor:
    """Agents that are nearest to some landmark get more credit."""
    B, n = agents_q.shape
    positions = global_state[:, 0:6].view(B, 3, 2)
    landmarks = global_state[:, 12:18].view(B, 3, 2)
    distances = torch.cdist(positions, landmarks)          # [B, n, L]
    nearest = distances.min(dim=-1).values
    weights = F.softmax(-nearest / 0.5, dim=-1)
    weights = 0.7 * weights + 0.3 / n
    return (weights * agents_q).sum(dim=1, keepdim=True)
''',
)

SPREAD_COLLISIONS = Written(
    "spread_collisions",
    3,
    18,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    n = agents_q.shape[1]
    pos = global_state[:, :6].reshape(-1, n, 2)
    delta = pos.unsqueeze(2) - pos.unsqueeze(1)
    dist = torch.sqrt((delta ** 2).sum(-1) + 1e-8)
    off_diagonal = 1.0 - torch.eye(n, device=agents_q.device)
    crowd = (torch.exp(-dist) * off_diagonal).sum(-1)
    score = torch.sigmoid(crowd - crowd.mean(dim=1, keepdim=True))
    weights = score / (score.sum(dim=1, keepdim=True) + 1e-6)
    return torch.einsum('bn,bn->b', weights, agents_q).unsqueeze(-1)
""",
)

LBF_LEVELS = Written(
    "lbf_levels",
    2,
    14,
    True,
    """
import torch
import math

def credit_assignment(agents_q, global_state):
    batch_size = agents_q.size(0)
    agents = global_state[:, :6].view(batch_size, 2, 3)
    foods = global_state[:, 6:12].view(batch_size, 2, 3)
    exists = (foods[..., 2] > 0).float()
    d = torch.norm(agents[:, :, None, :2] - foods[:, None, :, :2], dim=-1)
    closeness = torch.exp(-d / math.sqrt(8.0)) * exists.unsqueeze(1)
    level = agents[..., 2].clamp(min=0.0)
    score = (closeness * level.unsqueeze(-1)).amax(dim=2)
    w = torch.softmax(2.0 * score, dim=1)
    return torch.sum(w * agents_q, dim=1, keepdim=True)
""",
)

LBF_ACTIONS = Written(
    "lbf_last_actions",
    2,
    14,
    True,
    """
import torch
import torch.nn.functional as F

def credit_assignment(agents_q, global_state):
    last = global_state[:, 12:14].long()
    known = (last >= 0)
    kinds = F.one_hot(last.clamp(0, 5), num_classes=6).to(agents_q.dtype)   # [B, 2, 6]
    value = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.5, 1.5], device=agents_q.device)
    bonus = torch.where(known, kinds @ value, torch.ones_like(agents_q))
    w = bonus / bonus.sum(1, keepdim=True)
    return (w * agents_q).sum(1, keepdim=True)
""",
)

LOOPED = Written(
    "loop_with_assignment",
    4,
    8,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    B, n = agents_q.shape
    weights = torch.zeros(B, n, device=agents_q.device)
    for i in range(n):
        x, y = global_state[:, 2 * i], global_state[:, 2 * i + 1]
        weights[:, i] = 1.0 / (1.0 + x.abs() + y.abs())
    weights[:, 0] *= 2.0
    weights[global_state[:, 0] > 3.0, 1] = 0.25
    weights /= weights.sum(dim=1, keepdim=True)
    out = torch.zeros((B, 1), device=agents_q.device)
    for i in range(n):
        out[:, 0] += weights[:, i] * agents_q[:, i]
    return out
""",
)

GRF = Written(
    "grf_possession_bias",
    4,
    24,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    B, n = agents_q.shape
    players = global_state[:, 0:8].view(B, n, 2)
    ball = global_state[:, 8:11]
    owned = global_state[:, 20:24]
    to_ball = torch.linalg.norm(players - ball[:, None, :2], dim=-1)
    to_goal = torch.sqrt((1.0 - players[..., 0]).square() + players[..., 1].square() + 1e-6)
    has_ball = (owned == 1).float()
    score = 1.5 * has_ball - 1.0 * to_ball.tanh() - 0.5 * to_goal.tanh()
    weights = torch.softmax(score, dim=-1)
    bias = 0.05 * ball[:, 0:1].clamp(-1.0, 1.0) - 0.02 * to_ball.min(dim=1, keepdim=True)[0].clamp(max=2.0)
    return (weights * agents_q).sum(dim=1, keepdim=True) + bias
""",
)

QLLM_NAME = Written(
    "older_name",
    3,
    6,
    True,
    """
import torch

def QLLMNetwork(agents_q, global_state):
    def closeness(a, b, scale=2.0):
        return torch.exp(-((a - b) ** 2) / scale)

    features = [closeness(global_state[:, 2 * i], global_state[:, 2 * i + 1]) for i in range(3)]
    scores = torch.stack(features, dim=1)
    scores = scores - scores.max(dim=1, keepdim=True).values
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), agents_q.unsqueeze(2)).squeeze(-1)
""",
)

MATRIX = Written(
    "matrix_joint_bonus",
    2,
    2,
    False,
    """
import torch

def credit_assignment(agents_q, global_state):
    a, b = agents_q[:, 0:1], agents_q[:, 1:2]
    agree = torch.where(global_state[:, 0:1] == global_state[:, 1:2], 1.0, -1.0)
    first = (global_state[:, 0:1] < 0) | (global_state[:, 1:2] < 0)
    agree = torch.where(first, torch.zeros_like(agree), agree)
    return 0.5 * (a + b) + 0.1 * agree * torch.minimum(a, b) + 0.05 * a * b
""",
)

MAXIMUM = Written(
    "soft_maximum",
    3,
    3,
    False,
    """
import torch

def credit_assignment(agents_q, global_state):
    tau = 1.0 + torch.relu(global_state[:, :1])
    return (tau * (torch.logsumexp(agents_q / tau, dim=1, keepdim=True) - math.log(3)))
""".replace("import torch\n", "import math\nimport torch\n"),
)

RANKED = Written(
    "top_two",
    4,
    4,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    order = torch.argsort(global_state, dim=1, descending=True)
    table = torch.tensor([0.4, 0.3, 0.2, 0.1]).to(agents_q.device)
    sorted_q = torch.gather(agents_q, 1, order)
    _, index = torch.topk(global_state, k=2, dim=1)
    extra = agents_q.gather(1, index).mean(dim=1, keepdim=True)
    return (sorted_q * table).sum(-1, keepdim=True) + 0.1 * extra
""",
)

DETACHED = Written(
    "detached_weights",
    3,
    6,
    False,
    """
import torch

def credit_assignment(agents_q, global_state):
    weights = torch.softmax(agents_q.detach() + global_state[:, :3], dim=1)
    pieces = torch.split(weights * agents_q, 1, dim=1)
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total
""",
)

GROUPS = Written(
    "lists_and_conditions",
    3,
    9,
    True,
    """
import torch
import torch.nn.functional as F

def credit_assignment(agents_q, global_state):
    assert agents_q.shape[1] == 3, f"wrong number of agents: {agents_q.shape[1]}"
    scores = []
    for i, (weight, start) in enumerate(zip([0.5, 0.3, 0.2], [0, 3, 6])):
        part = global_state[:, start:start + 3]
        part = (part - part.mean(dim=-1, keepdim=True)) / (part.std(dim=-1, keepdim=True, unbiased=False) + 1e-3)
        if i == 0:
            scores.append(weight * part.max(dim=-1)[0])
        else:
            scores.append(weight * F.softplus(part).mean(-1))
    scores = torch.stack(scores, dim=-1)
    scores = torch.nan_to_num(F.normalize(scores, dim=-1), nan=0.0)
    weights = F.softmax(scores, -1)
    return torch.matmul(weights.unsqueeze(1), agents_q.unsqueeze(-1)).reshape(-1, 1)
""",
)

MASKED = Written(
    "masked_softmax",
    3,
    12,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    alive = global_state[:, 0::4] >= 0
    health = global_state[:, [1, 5, 9]]
    logits = health.masked_fill(~alive, float('-inf'))
    logits = torch.where(alive.any(dim=1, keepdim=True), logits, torch.zeros_like(logits))
    weights = torch.softmax(logits, dim=1)
    scale = torch.full_like(weights, 1.0).cumsum(dim=1) / torch.arange(1, 4, device=agents_q.device).float()
    return (weights * scale * agents_q).sum(1).view(-1, 1)
""",
)

INDEXED = Written(
    "indexed_holder",
    3,
    5,
    True,
    """
import torch

def credit_assignment(agents_q, global_state):
    B = len(agents_q)
    holder = torch.argmax(global_state[:, 0:3], dim=1)
    rows = torch.arange(B, device=agents_q.device)
    share = torch.full((B, 3), 0.25, device=agents_q.device)
    onehot = torch.zeros(B, 3, device=agents_q.device).scatter(1, holder.unsqueeze(1), 0.25)
    own = agents_q[rows, holder].unsqueeze(1)
    return ((share + onehot) * agents_q).sum(1, keepdim=True) + 0.0 * own
""",
)

ALL = (
    VDN,
    SPREAD,
    SPREAD_COLLISIONS,
    LBF_LEVELS,
    LBF_ACTIONS,
    LOOPED,
    GRF,
    QLLM_NAME,
    MATRIX,
    MAXIMUM,
    RANKED,
    DETACHED,
    GROUPS,
    MASKED,
    INDEXED,
)
