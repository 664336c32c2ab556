"""The networks of a team: shared or one each, recurrent or feed-forward."""

import pytest
import torch

from qllm_exp.config import schema
from qllm_exp.networks.agents import TeamNetwork

T, N, AGENTS, INPUTS, OUTPUTS = 5, 3, 2, 4, 6


def network(kind: str, shared: bool) -> TeamNetwork:
    torch.manual_seed(0)
    return TeamNetwork(AGENTS, INPUTS, OUTPUTS, schema.TrainConfig(network=kind, share_parameters=shared, hidden=8))


@pytest.mark.parametrize("kind", ["gru", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_step_by_step_and_along_episodes_are_the_same(kind, shared):
    team, inputs = network(kind, shared), torch.randn(T, N, AGENTS, INPUTS)
    sequence, hidden = team.unroll(inputs), team.initial_hidden(N, "cpu")
    for t in range(T):
        out, hidden = team.step(inputs[t], hidden)
        torch.testing.assert_close(out, sequence[t])


@pytest.mark.parametrize("kind", ["gru", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_an_agent_is_trained_by_its_own_outputs_unless_the_network_is_shared(kind, shared):
    team, inputs = network(kind, shared), torch.randn(T, N, AGENTS, INPUTS)
    assert len(team.members) == (1 if shared else AGENTS)
    team.unroll(inputs)[:, :, 1].sum().backward()
    has_gradient = [any(p.grad is not None and p.grad.any() for p in member.parameters()) for member in team.members]
    assert has_gradient == ([True] if shared else [False, True])


@pytest.mark.parametrize("shared", [True, False])
def test_a_recurrent_agent_remembers_and_a_feed_forward_one_does_not(shared):
    inputs = torch.randn(T, N, AGENTS, INPUTS)
    other = inputs.clone()
    other[0] += 1.0
    changed = {
        kind: not torch.equal(network(kind, shared).unroll(inputs)[-1], network(kind, shared).unroll(other)[-1])
        for kind in ("gru", "mlp")
    }
    assert changed == {"gru": True, "mlp": False}
