"""The agents' recurrent network: compiled and plain torch alike, against the same weights in float64 torch modules."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.networks import gru_kernel
from qllm_exp.networks.packing import Packing
from qllm_exp.networks.recurrent import RecurrentAgent

# Rounding of float32 is 6e-8. Errors of a q are that of sums over inputs and units, carried on over at most 26 steps;
# gradients add up some thousand terms, so theirs is taken relative to the largest gradient of the same parameter.
Q_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 2e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def agent(n_inputs: int, n_actions: int, hidden: int, layer_norm: bool = False) -> RecurrentAgent:
    torch.manual_seed(n_inputs * 1000 + hidden)
    module = RecurrentAgent(n_inputs, n_actions, hidden, layer_norm)
    if isinstance(module.norm, nn.LayerNorm):  # other values than its first ones, 1 and 0
        nn.init.uniform_(module.norm.weight, -1.5, 1.5)
        nn.init.uniform_(module.norm.bias, -0.5, 0.5)
    return module


class Twin(nn.Module):
    """The same network from torch's modules, step by step, in float64."""

    def __init__(self, agent: RecurrentAgent) -> None:
        super().__init__()
        hidden = agent.gru.hidden_size
        self.fc_in = nn.Linear(agent.fc_in.in_features, hidden)
        self.norm = nn.LayerNorm(hidden) if isinstance(agent.norm, nn.LayerNorm) else nn.Identity()
        self.gru = nn.GRUCell(hidden, hidden)
        self.fc_out = nn.Linear(hidden, agent.fc_out.out_features)
        self.load_state_dict(agent.state_dict())
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.zeros(inputs.shape[1], self.gru.hidden_size, dtype=torch.float64)
        q = []
        for x in inputs.double():
            hidden = self.gru(F.relu(self.norm(self.fc_in(x))), hidden)
            q.append(self.fc_out(hidden))
        return torch.stack(q)


def gradients(q: Tensor, module: nn.Module) -> list[Tensor]:
    """Of a loss that weighs every q differently."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(q.shape, generator=generator).to(q.dtype)
    return list(torch.autograd.grad((q * weights).sum() + q.square().sum(), list(module.parameters())))


def assert_matches_twin(module: RecurrentAgent, inputs: Tensor) -> None:
    twin = Twin(module)
    q, expected = module.unroll(inputs), twin(inputs)
    torch.testing.assert_close(q.double(), expected, rtol=0, atol=Q_TOLERANCE * max(1.0, expected.abs().max().item()))
    names = [name for name, _ in module.named_parameters()]
    for name, gradient, expected_gradient in zip(names, gradients(q, module), gradients(expected, twin), strict=True):
        error = (gradient.double() - expected_gradient).abs().max().item()
        assert error <= GRADIENT_TOLERANCE * max(expected_gradient.abs().max().item(), 1e-3), name


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_kernel.SOURCE, "_load", lambda: (None, "switched off by the test"))


def test_the_compiled_network_is_in_use() -> None:
    assert gru_kernel.available(), gru_kernel.status()
    assert gru_kernel.status().startswith("native (")


@settings(max_examples=30, deadline=None)
@example(hidden=64, n_inputs=21, n_actions=5, rows=97, steps=26, layer_norm=False)
@example(hidden=64, n_inputs=21, n_actions=5, rows=97, steps=26, layer_norm=True)
@example(hidden=100, n_inputs=115, n_actions=19, rows=5, steps=3, layer_norm=True)
@example(hidden=1, n_inputs=1, n_actions=1, rows=1, steps=1, layer_norm=False)
@example(hidden=1, n_inputs=1, n_actions=1, rows=1, steps=1, layer_norm=True)
@given(
    hidden=st.sampled_from([1, 7, 16, 48, 64, 100]),
    n_inputs=st.sampled_from([1, 3, 21, 115]),
    n_actions=st.sampled_from([1, 5, 16, 19]),
    rows=st.sampled_from([1, 2, 5, 24, 97, 200]),
    steps=st.sampled_from([1, 2, 5, 9]),
    layer_norm=st.booleans(),
)
def test_q_and_gradients_equal_torch_in_double_precision(
    hidden: int, n_inputs: int, n_actions: int, rows: int, steps: int, layer_norm: bool
) -> None:
    module = agent(n_inputs, n_actions, hidden, layer_norm)
    assert_matches_twin(module, torch.randn(steps, rows, n_inputs, generator=torch.Generator().manual_seed(steps)))


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("hidden", "rows", "steps"), [(7, 5, 3), (64, 96, 26), (16, 1, 1)])
def test_plain_torch_equals_torch_in_double_precision(hidden: int, rows: int, steps: int, layer_norm: bool) -> None:
    assert gru_kernel.status().startswith("torch (")
    module, inputs = agent(4, 5, hidden, layer_norm), torch.randn(steps, rows, 4)
    assert_matches_twin(module, inputs)
    state = module.initial_hidden(rows, "cpu")
    for x, expected in zip(inputs, module.unroll(inputs), strict=True):
        q, state = module.step(x, state)
        torch.testing.assert_close(q, expected, rtol=0, atol=Q_TOLERANCE)


def packed(seed: int, rows: int, steps: int) -> Packing:
    """Rows of random lengths, the last row as long as possible."""
    lengths = torch.randint(1, steps + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    lengths[-1] = steps
    return Packing(torch.arange(steps).unsqueeze(1) < lengths)


def assert_packed_rows_match_twin(module: RecurrentAgent, inputs: Tensor, packing: Packing) -> None:
    twin = Twin(module)
    q = module.unroll_packed(packing.pack(inputs)[0], packing.sizes)
    expected = packing.pack(twin(inputs))[0]
    torch.testing.assert_close(q.double(), expected, rtol=0, atol=Q_TOLERANCE * max(1.0, expected.abs().max().item()))
    for gradient, other in zip(gradients(q, module), gradients(expected, twin), strict=True):
        assert (gradient.double() - other).abs().max() <= GRADIENT_TOLERANCE * max(other.abs().max().item(), 1e-3)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [7, 64])
@pytest.mark.parametrize(("rows", "steps"), [(2, 3), (5, 40), (64, 26), (97, 9), (300, 12)])
def test_sequences_of_different_lengths_equal_torch_in_double_precision(
    hidden: int, rows: int, steps: int, layer_norm: bool
) -> None:
    inputs = torch.randn(steps, rows, 9, generator=torch.Generator().manual_seed(steps))
    packing = packed(rows, rows, steps)
    assert packing.index is not None
    assert_packed_rows_match_twin(agent(9, 5, hidden, layer_norm), inputs, packing)


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.parametrize(("rows", "steps"), [(5, 40), (97, 9)])
def test_plain_torch_takes_sequences_of_different_lengths(rows: int, steps: int) -> None:
    inputs = torch.randn(steps, rows, 9, generator=torch.Generator().manual_seed(steps))
    assert_packed_rows_match_twin(agent(9, 5, 16), inputs, packed(rows, rows, steps))


@pytest.mark.parametrize("rows", [5, 97, 300])
def test_a_sequence_has_the_same_bits_whatever_the_lengths_of_the_others(rows: int) -> None:
    module, inputs, packing = agent(9, 5, 64), torch.randn(12, rows, 9), packed(rows, rows, 12)
    q = module.unroll_packed(packing.pack(inputs)[0], packing.sizes)
    assert torch.equal(q, packing.pack(module.unroll(inputs))[0])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [7, 64])
@pytest.mark.parametrize("rows", [1, 5, 97])
def test_acting_evaluating_and_training_see_the_same_bits(hidden: int, rows: int, layer_norm: bool) -> None:
    module, inputs = agent(9, 5, hidden, layer_norm), torch.randn(6, rows, 9)
    q = module.unroll(inputs)
    assert q.requires_grad
    with torch.no_grad():
        assert torch.equal(q, module.unroll(inputs))
    state = module.initial_hidden(rows, "cpu")
    for x, expected in zip(inputs, q, strict=True):
        given_state = state.clone()
        step_q, next_state = module.step(x, state)
        assert torch.equal(step_q, expected) and not step_q.requires_grad
        assert torch.equal(state, given_state)
        state = next_state


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("rows", [3, 96, 200])
def test_repeated_calls_give_the_same_bits(rows: int, layer_norm: bool) -> None:
    module, inputs = agent(9, 5, 64, layer_norm), torch.randn(7, rows, 9)
    first = gradients(module.unroll(inputs), module)
    gradients(module.unroll(torch.full_like(inputs, torch.nan)), module)  # leaves NaN in memory that is used again
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(module.unroll(inputs), module), strict=True))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_row_does_not_depend_on_the_others(layer_norm: bool) -> None:
    module, inputs = agent(9, 5, 64, layer_norm), torch.randn(7, 130, 9)
    q = module.unroll(inputs)
    for rows in ([0], [3, 4, 129], list(range(97))):
        assert torch.equal(module.unroll(inputs[:, rows]), q[:, rows])


def test_graphs_that_live_at_once_keep_their_own_memory() -> None:
    module, batches = agent(9, 5, 64), [torch.randn(7, 20, 9) for _ in range(5)]
    alone = [gradients(module.unroll(batch), module) for batch in batches]
    graphs = [module.unroll(batch) for batch in batches]
    together = [gradients(q, module) for q in graphs]
    for expected, actual in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_a_kept_graph_gives_its_gradients_twice() -> None:
    module = agent(9, 5, 64)
    q = module.unroll(torch.randn(7, 20, 9))
    parameters = list(module.parameters())
    first = torch.autograd.grad(q.sum(), parameters, retain_graph=True)
    torch.autograd.backward(module.unroll(torch.randn(7, 20, 9)).sum())
    second = torch.autograd.grad(q.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_parameter_changed_between_forward_and_backward_is_refused() -> None:
    module = agent(3, 2, 8)
    q = module.unroll(torch.randn(2, 4, 3))
    with torch.no_grad():
        module.fc_out.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(q.sum())


@pytest.mark.parametrize(
    "trained", [["gru.weight_hh"], ["fc_in.bias", "fc_out.weight"], ["gru.bias_ih"], ["norm.bias"]]
)
def test_gradients_reach_the_parameters_that_are_trained(trained: list[str]) -> None:
    module, inputs = agent(9, 5, 16, layer_norm=True), torch.randn(4, 5, 9)
    expected = dict(zip(dict(module.named_parameters()), gradients(module.unroll(inputs), module), strict=True))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    q = module.unroll(inputs)
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(7))
    torch.autograd.backward((q * weights).sum() + q.square().sum())
    for name, parameter in module.named_parameters():
        if name in trained:
            assert parameter.grad is not None and torch.equal(parameter.grad, expected[name])
        else:
            assert parameter.grad is None


def test_inputs_that_need_gradients_get_them() -> None:
    module, inputs = agent(9, 5, 16), torch.randn(4, 5, 9)
    inputs32, inputs64 = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
    torch.autograd.backward(module.unroll(inputs32).sum())
    torch.autograd.backward(Twin(module)(inputs64).sum())
    assert inputs32.grad is not None and inputs64.grad is not None
    torch.testing.assert_close(inputs32.grad.double(), inputs64.grad, rtol=0, atol=1e-6)


def one_unit(weight: float, bias: list[float]) -> RecurrentAgent:
    """q = h of a single unit from inputs x >= 0. Gates get their bias alone; z and n without one get weight * x."""
    module = RecurrentAgent(1, 1, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.fc_in.weight.fill_(1.0)
        module.fc_out.weight.fill_(1.0)
        module.gru.weight_ih.copy_(torch.tensor([[0.0], [0.0 if bias[1] else weight], [0.0 if bias[2] else weight]]))
        module.gru.bias_ih.copy_(torch.tensor(bias))
    return module


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gates_are_accurate_to_a_few_units_in_the_last_place(sign: float) -> None:
    x = torch.cat([torch.logspace(-30, -2, 200), torch.linspace(0.01, 40, 20000)])
    # Update gate shut: h = tanh(x), relative error.
    tanh = one_unit(sign, [0.0, -1e4, 0.0]).unroll(x[None, :, None])[0, :, 0].detach().double()
    expected = torch.tanh(sign * x.double())
    assert ((tanh - expected) / expected).abs().max() < 4e-7
    # Candidate one: h = 1 - sigmoid(x) = sigmoid(-x), absolute error.
    update = one_unit(sign, [0.0, 0.0, 1e4]).unroll(x[None, :, None])[0, :, 0].detach().double()
    assert (update - torch.sigmoid(-sign * x.double())).abs().max() < 2e-7


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_saturated_gates_have_their_limits(size: float) -> None:
    module, inputs = agent(6, 5, 16), size * torch.randn(4, 9, 6)
    q = module.unroll(inputs)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.double(), Twin(module)(inputs), rtol=0, atol=Q_TOLERANCE)
    assert all(torch.isfinite(g).all() for g in gradients(q, module))


@pytest.mark.parametrize(("hidden", "layer_norm"), [(16, False), (16, True), (7, True)])
def test_a_nan_stays_in_its_row_and_is_never_lost(hidden: int, layer_norm: bool) -> None:
    module, inputs = agent(6, 5, hidden, layer_norm), torch.randn(4, 9, 6)
    clean = module.unroll(inputs)
    inputs[1, 2, 3] = torch.nan
    q = module.unroll(inputs)
    assert q[1:, 2].isnan().all()
    others = [row for row in range(9) if row != 2]
    assert torch.equal(q[:, others], clean[:, others]) and torch.equal(q[0, 2], clean[0, 2])
    assert all(g.isnan().any() for g in gradients(q, module))


def test_inputs_need_not_be_contiguous() -> None:
    module, inputs = agent(6, 5, 16), torch.randn(9, 4, 6)
    assert torch.equal(module.unroll(inputs.transpose(0, 1)), module.unroll(inputs.transpose(0, 1).contiguous()))
    q, expected = module.unroll(inputs), module.unroll(inputs)
    by_column = torch.randn(5, 4, 9).permute(2, 1, 0)
    actual = torch.autograd.grad(q, list(module.parameters()), by_column)
    contiguous = torch.autograd.grad(expected, list(module.parameters()), by_column.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(actual, contiguous, strict=True))


def test_a_copy_and_other_precisions_work() -> None:
    module, inputs = agent(6, 5, 16), torch.randn(4, 9, 6)
    target = copy.deepcopy(module)
    assert torch.equal(target.unroll(inputs), module.unroll(inputs))
    torch.testing.assert_close(target.double().unroll(inputs.double()), Twin(module)(inputs), rtol=0, atol=1e-12)
    assert module.unroll(inputs[:, :0]).shape == (4, 0, 5)


def test_tensors_that_do_not_fit_are_refused() -> None:
    module = agent(6, 5, 16)
    with pytest.raises(ValueError, match="do not fit"):
        module.unroll(torch.zeros(4, 9, 7))
    with pytest.raises(ValueError, match="do not fit"):
        gru_kernel.unroll(torch.zeros(18, 6), torch.tensor([18]), [*module._kernel_parameters(), torch.ones(16)])
    with pytest.raises(ValueError, match="hidden"):
        module.step(torch.zeros(9, 6), torch.zeros(8, 16))
    with pytest.raises(TypeError, match="float32 on cpu"):
        gru_kernel.unroll(torch.zeros(36, 6, dtype=torch.float64), torch.tensor([18, 18]), module._kernel_parameters())
    for sizes in ([9, 9], [4, 5], [9, 0]):
        with pytest.raises(ValueError, match="positive numbers that do not increase"):
            gru_kernel.unroll(torch.zeros(9, 6), torch.tensor(sizes), module._kernel_parameters())


WITHOUT_COMPILER = """
import sys, torch
from qllm_exp.networks import gru_kernel
from qllm_exp.networks.recurrent import RecurrentAgent
torch.manual_seed(3)
module, inputs = RecurrentAgent(9, 5, 64), torch.randn(7, 20, 9)
q = module.unroll(inputs)
q.square().sum().backward()
torch.save((gru_kernel.status(), q.detach(), [p.grad for p in module.parameters()]), sys.argv[1])
"""


def test_without_a_compiler_the_results_are_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("CXX", None)
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path / "out")], env=environment, check=True)
    status, q, grads = torch.load(tmp_path / "out")
    assert status.startswith("torch (no C++ compiler")
    torch.manual_seed(3)
    module, inputs = RecurrentAgent(9, 5, 64), torch.randn(7, 20, 9)
    q_compiled = module.unroll(inputs)
    torch.testing.assert_close(q_compiled.detach(), q, rtol=0, atol=1e-5)
    torch.autograd.backward(q_compiled.square().sum())
    for parameter, expected in zip(module.parameters(), grads, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-5)
