"""Parameters in one tensor: they are the modules' own, and a gradient step is that of torch's clipping and optimisers."""

import copy

import pytest
import torch

from qllm_exp.algorithms.flat_parameters import FlatParameters, make_optimiser
from qllm_exp.config.schema import TrainConfig


def test_flat_parameters_are_the_modules_parameters():
    module = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    flat = FlatParameters([module])
    x = torch.randn(5, 3)
    for m in (module, twin):
        m(x).square().sum().backward()
    assert torch.equal(flat.gradient, torch.cat([p.grad.flatten() for p in twin.parameters()]))
    with torch.no_grad():
        flat.values.zero_()
    assert not module.weight.any()


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_a_gradient_step_clips_and_is_the_step_of_torchs_optimiser(optimiser, max_norm):
    train = TrainConfig(optimiser=optimiser, learning_rate=0.01)
    module = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    flat, twin_flat = FlatParameters([module]), FlatParameters([twin])
    steps, twin_steps = make_optimiser(train, flat), make_optimiser(train, twin_flat)
    for seed in range(4):
        flat.gradient.normal_(generator=torch.Generator().manual_seed(seed))
        twin_flat.gradient.copy_(flat.gradient)
        expected_norm = torch.nn.utils.clip_grad_norm_([twin_flat.values], max_norm)
        twin_steps.step()
        assert torch.allclose(flat.gradient_step(steps, max_norm), expected_norm)
        assert torch.allclose(flat.gradient, twin_flat.gradient)
        torch.testing.assert_close(flat.values, twin_flat.values, rtol=1e-5, atol=1e-7)
    saved, expected = steps.state_dict()["state"][0], twin_steps.state_dict()["state"][0]
    assert saved.keys() == expected.keys() and all(torch.allclose(saved[key], expected[key]) for key in expected)
