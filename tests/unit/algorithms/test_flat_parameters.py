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


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "radam"])
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


@pytest.mark.parametrize(
    ("optimiser", "options"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.5}),
        (torch.optim.Adam, {"weight_decay": 0.5, "fused": True}),
        (torch.optim.Adam, {"maximize": True, "fused": True}),
        (torch.optim.Adam, {"amsgrad": True}),
    ],
)
def test_the_step_of_another_optimiser_is_its_own(optimiser, options):
    flat, twin = (FlatParameters([copy.deepcopy(module)]) for module in [torch.nn.Linear(3, 2)] * 2)
    steps, twin_steps = (optimiser([x.values], lr=0.1, **options) for x in (flat, twin))
    for _ in range(3):
        flat.gradient.fill_(0.1)
        twin.gradient.fill_(0.1)
        flat.gradient_step(steps, 1e9)
        twin_steps.step()
        assert torch.equal(flat.values, twin.values)


def test_a_nan_in_one_gradient_reaches_all_parameters():
    flat = FlatParameters([torch.nn.Linear(3, 2)])
    flat.gradient[0] = torch.nan
    flat.gradient_step(make_optimiser(TrainConfig(), flat), 1.0)
    assert flat.values.isnan().all()
