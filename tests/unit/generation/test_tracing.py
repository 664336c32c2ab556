"""Tracing: a program is the source of one row, for every row of a batch, in values and gradients."""

import pytest
import torch
from tfcaf_functions import ALL, Written

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.tracing import trace

HEAD = "import torch\nimport torch.nn.functional as F; import numpy as np\n\ndef credit_assignment(agents_q, global_state):\n"
N, STATE_DIM = 3, 4


def program_of(body: str) -> Program:
    return trace(HEAD + body, states(60), N).program(states(60))


def states(rows: int) -> torch.Tensor:
    return torch.rand(rows, STATE_DIM, generator=torch.Generator().manual_seed(1)) * 4 - 1


def by_rows(written: Written, q: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    function = written.function()
    return torch.cat([function(q[i : i + 1], state[i : i + 1]).reshape(1, 1) for i in range(len(q))])


@pytest.mark.parametrize("written", ALL, ids=lambda written: written.name)
def test_a_program_is_the_source_of_each_row(written: Written) -> None:
    program = trace(written.source, written.states(60), written.n_agents).program(written.states(60))
    q, state = torch.randn(50, written.n_agents), written.states(50, seed=3)
    leaves = [q.clone().requires_grad_(), q.clone().requires_grad_()]
    expected, actual = by_rows(written, leaves[0], state), program(leaves[1], state)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(v.sum(), x, materialize_grads=True)[0]
        for v, x in zip((expected, actual), leaves, strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    "body",
    [
        "    return (torch.softmax(global_state[:, :3], 0) * agents_q).sum(1, keepdim=True)",
        "    return agents_q.mean(1, keepdim=True) * global_state.abs().max()",
        "    return agents_q.mean(1, keepdim=True) * (1 if agents_q.shape[0] < 800 else -1)",
        "    return agents_q.mean(1, keepdim=True) * (1 - 2 * (agents_q.shape[0] // 1000))",
        "    rows = torch.arange(agents_q.shape[0], device=agents_q.device)[:, None]\n"
        "    return agents_q.mean(1, keepdim=True) * torch.where(rows > 600, -1.0, 1.0)",
        "    return agents_q.mean(1, keepdim=True) + 0.1 * global_state.roll(1, 0)[:, :1]",
        "    return (agents_q * agents_q.shape[0]).mean(1, keepdim=True)",
        "    return agents_q.cumsum(0).mean(1, keepdim=True)",
    ],
)
def test_rows_that_see_each_other_or_their_number_are_refused(body: str) -> None:
    with pytest.raises(Refused, match="gives other values than for each row alone") as refused:
        program_of(body)
    assert refused.value.stage == "run"


def test_what_happens_for_numbers_of_rows_that_were_not_tried_is_not_in_the_program() -> None:
    body = "    weight = -1.0 if agents_q.shape[0] == 777 else 1.0\n    return weight * agents_q.mean(1, keepdim=True)"
    program, q = program_of(body), torch.randn(777, N)
    torch.testing.assert_close(program(q, states(777)), q.mean(1, keepdim=True))


@pytest.mark.parametrize(
    "body",
    [
        "    w = torch.zeros(agents_q.shape[0], 3)\n    for i in range(3):\n        w[:, i] = global_state[:, i]\n"
        "    return (w * agents_q).sum(1, keepdim=True)",
        "    q = agents_q.clone()\n    q[:, 0] = 2 * q[:, 1]\n    q[:, 1:] *= 0.5\n    return q.sum(1, keepdim=True)",
        "    w = torch.ones_like(agents_q)\n    w.view(-1)[::3] = 2.0\n    return (w * agents_q).mean(1, keepdim=True)",
        "    w = torch.ones_like(agents_q)\n    w[global_state[:, :3] > 0.5] = 0.25\n    w[global_state[:, 0] > 1, 1] += 1.0\n"
        "    return (w * agents_q).sum(1, keepdim=True)",
        "    w = agents_q * 1.0\n    near = global_state[:, :3] < 0.5\n    w[near] = 2 * w[near] + 1\n    return w.sum(1)",
        "    w = torch.ones(3).zero_().fill_(2.0)\n    return torch.column_stack([w, w.clip_(0, 1)]).sum() * agents_q.sum(1)",
        "    s = F.cosine_similarity(global_state[:, :3], agents_q.detach(), dim=1)\n    return agents_q.sum(1) * s",
        "    with torch.no_grad():\n        w = agents_q * 2\n        w += agents_q\n    return (w * agents_q).sum(1)",
        "    rows = torch.arange(agents_q.shape[0])\n    best = global_state[:, :3].argmax(1)\n    return agents_q[rows, best]",
        "    total = 0\n    for row in range(agents_q.shape[0]):\n        total = total + 0\n    return agents_q.sum(1) + total",
        "    code = F.one_hot(global_state[:, 0].abs().long() % 3, 3).float()\n    return (code * agents_q).sum(1, keepdim=True)",
        "    best = torch.take_along_dim(agents_q, global_state[:, :3].argmax(1, keepdim=True), 1)\n    return best",
        "    gaps = global_state[:, :3, None] - global_state[:, None, :3]\n"
        "    others = gaps[:, ~torch.eye(3, dtype=torch.bool)].view(-1, 3, 2)\n    return (others.sum(2) * agents_q).sum(1)",
        "    keep = torch.tensor([True, False, True])\n    w = torch.ones_like(agents_q)\n    w[:, ~keep] = 0.0\n"
        "    w[:, keep] = 2 * w[:, keep] + global_state[:, 0:1]\n    return (w * agents_q).sum(1)",
        "    upper = torch.triu(torch.ones(3, 3), 1) > 0\n    gaps = global_state[:, :3, None] * global_state[:, None, :3]\n"
        "    return (gaps[:, upper].mean(1) + 1) * agents_q.sum(1)",
        "    m = torch.ones(3) > 0\n    m[0] = False\n    n = int(m.sum()) / 3 if m.any() else 1\n"
        "    return agents_q[:, m].sum(1) * n + float(m.float().mean())",
        "    first = torch.arange(3) < 1\n    return agents_q[:, first].sum(1) + agents_q.T[~first].T.sum(1)",
        "    assert torch.all(global_state < 9)\n    return agents_q.norm(dim=1).squeeze()",
        "    w = F.layer_norm(global_state[:, :3], (3,)).clamp_(min=0.1)\n    return (F.logsigmoid(w) * agents_q).sum(1)",
        "    w = torch.einsum('bi,ij->bj', global_state[:, :3], torch.eye(3).tril())\n    return torch.linalg.vecdot(w, agents_q)",
    ],
)
def test_changes_in_place_masks_and_blocks_without_gradient_are_traced(body: str) -> None:
    program = program_of(body)  # which is compared with the source there, in values and gradients
    assert program(torch.randn(5, N), states(5)).shape == (5, 1)


@pytest.mark.parametrize(
    ("body", "stage", "reason"),
    [
        (
            "    if global_state[0, 0] > 1:\n        return agents_q[:, :1]\n    return agents_q[:, 1:2]",
            "trace",
            "line 5.*torch.where",
        ),
        (
            "    w = 1.0 if bool(global_state.sum() > -99) else 2.0\n    return w * agents_q[:, :1]",
            "trace",
            "line 5.*torch.where",
        ),
        (
            "    near = global_state[:, :3] > -9\n    return agents_q[near].sum().reshape(1, 1)",
            "trace",
            "boolean mask",
        ),
        ("    return agents_q.sum(1, keepdim=True) * torch.ones(1, 5)", "run", r"shape \[1, 5\] for a batch of 1"),
        ("    return agents_q.sum(1) + agents_q.mean(1, keepdim=True)", "run", r"shape \[2, 2\] for a batch of 2"),
        ("    return agents_q[:, :1] * agents_q[agents_q > -99][0]", "trace", "boolean mask"),
        (
            "    m = global_state[:, :3] > -99\n    return agents_q[:, :1] * len(agents_q[m]) / 3",
            "trace",
            "boolean mask",
        ),
        ("    return agents_q[:, :1] * float(global_state[:, 0].sum() > -99)", "trace", "line 5.*Python numbers"),
        ("    return agents_q.detach().sum(1, keepdim=True)", "run", "does not depend on agents_q"),
        ("    agents_q += 1\n    return agents_q[:, :1]", "run", "changes its inputs"),
        *(
            (
                f"    k = 2.0 if '{text}' in f'{{global_state}}' else 1.0\n    return k * agents_q[:, :1]",
                "trace",
                "other values",
            )
            for text in ("tensor(...)", "]])")
        ),
        ("    return agents_q[:, 7:8].gather(1, torch.zeros(1, 1).long())", "run", "line 5"),
        ("    return agents_q[:, :1] * (agents_q // 2)[:, :1]", "run", "no gradient in torch.*torch.floor"),
        (
            "    w = torch.tensor([global_state[0, 0], global_state[0, 1], 1.0])\n    return (w * agents_q).sum(1)",
            "trace",
            "line 5.*torch.stack",
        ),
        (
            "    code = F.one_hot(global_state[:, 0].abs().long())\n    return code[:, :1] * agents_q[:, :1]",
            "trace",
            "line 5.*num_classes",
        ),
        (
            "    ring = F.pad(agents_q[:, None], (1, 1), mode='circular')\n    return ring.sum((1, 2))",
            "convert",
            "torch.cat",
        ),
        (
            "    return torch.linalg.norm(agents_q[:, :, None] * global_state[:, None], ord=2, dim=(1, 2))",
            "convert",
            "norm of vectors",
        ),
        ("    return np.sqrt(agents_q).sum(1)", "run", "function of torch instead"),
        # What numpy made of a tensor without values was a constant: the mask is true in no state that was tried.
        (
            "    rare = torch.from_numpy(np.array(global_state[:, :3]) > 2.999)\n"
            "    return torch.where(rare, -agents_q, agents_q).sum(1)",
            "trace",
            "line 5.*function of torch instead",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused_with_the_line(body: str, stage: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        program_of(body)
    assert refused.value.stage == stage


def test_what_a_mask_selected_does_not_change_later() -> None:
    body = (
        "    w = agents_q * 1.0\n    rare = global_state[:, :3] > 2.99\n    old = w[rare]\n    w[rare] = 0.0\n"
        "    w[rare] = old * 2\n    return w.sum(1)"
    )
    state = states(50)
    state[:, :3] = 2.995  # never among the states that the program was compared on
    q = torch.randn(50, N)
    torch.testing.assert_close(program_of(body)(q, state), 2 * q.sum(1, keepdim=True))


def test_each_operation_has_its_line() -> None:
    traced = trace(
        HEAD + "    w = torch.exp(global_state[:, :3])\n    return (w * agents_q).sum(1, keepdim=True)", states(60), N
    )
    lines = dict(zip((name for name, _, _ in traced.data["operations"]), traced.lines, strict=True))
    assert (lines["exp.default"], lines["mul.Tensor"], lines["sum.dim_IntList"]) == (5, 6, 6)
    assert traced.function == "credit_assignment"
