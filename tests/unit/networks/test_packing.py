"""Steps of episodes without their padding, and back."""

import pytest
import torch

from qllm_exp.networks.packing import Packing

LENGTHS = torch.tensor([2, 4, 1, 4])
MASK = torch.arange(4).unsqueeze(1) < LENGTHS


def test_packed_steps_are_those_of_the_episodes_in_time_order_the_longest_first():
    packing = Packing(MASK)
    step, episode = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert packing.sizes.tolist() == [4, 3, 2, 2]
    assert packing.pack(step)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert packing.pack(episode)[0].tolist() == [1, 3, 0, 2, 1, 3, 0, 1, 3, 1, 3]


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_unpacking_restores_the_steps_and_their_gradients_and_fills_the_padding_with_zeros(shape):
    packing, values = Packing(MASK), torch.randn(4, 4, *shape).requires_grad_()
    restored = packing.unpack(packing.pack(values))
    expected = torch.where(MASK.view(4, 4, *[1] * len(shape)), values, 0.0)
    assert torch.equal(restored, expected)
    weights = torch.randn(4, 4, *shape)
    gradient, expected_gradient = (torch.autograd.grad((x * weights).sum(), values)[0] for x in (restored, expected))
    assert torch.equal(gradient, expected_gradient)


def test_steps_beyond_the_longest_episode_are_padding_too():
    packing = Packing(torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)]))
    assert packing.sizes.tolist() == [4, 3, 2, 2]
    assert packing.unpack(packing.pack(torch.ones(6, 4))).sum() == LENGTHS.sum()


def test_a_batch_without_padding_is_left_as_it_is():
    packing, values = Packing(MASK[:, [1, 3]]), torch.randn(4, 2, 3)
    assert packing.index is None and packing.sizes.tolist() == [2, 2, 2, 2]
    assert packing.pack(values) is values and packing.unpack(values) is values
