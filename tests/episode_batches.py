"""A small environment and batches of made-up episodes of it, for tests of learning."""

import torch

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.envs import make_env
from qllm_exp.envs.lbf import Config as LbfConfig

ENV = make_env(LbfConfig(num_envs=3), 3, 0)


def batch(steps: int = 6, episodes: int = 4, seed: int = 0) -> EpisodeBatch:
    """Random episodes of four different lengths; two terminated and two were truncated."""
    g = torch.Generator().manual_seed(seed)
    n, a = ENV.n_agents, ENV.n_actions
    available = torch.rand(steps + 1, episodes, n, a, generator=g) < 0.6
    available[..., 0] = True
    actions = torch.where(available[:-1], torch.rand(steps, episodes, n, a, generator=g), -1.0).argmax(-1)
    lengths = torch.tensor([steps, 2, 4, 1])
    terminated = torch.zeros(steps, episodes, dtype=torch.bool)
    terminated[lengths[:2] - 1, torch.arange(2)] = True  # the other two were truncated
    return EpisodeBatch(
        torch.randn(steps + 1, episodes, n, ENV.obs_dim, generator=g),
        torch.randn(steps + 1, episodes, ENV.state_dim, generator=g),
        available,
        actions,
        torch.randn(steps, episodes, generator=g),
        terminated,
        torch.arange(steps).unsqueeze(1) < lengths,
    )


def otherwise_padded(b: EpisodeBatch, seed: int = 9) -> EpisodeBatch:
    """The same episodes with NaN in the padding, and different actions there, including unavailable ones."""
    g = torch.Generator().manual_seed(seed)
    over = torch.cat([torch.zeros_like(b.mask[:1]), ~b.mask])  # after the last observation
    obs, state, available = b.obs.clone(), b.state.clone(), b.available_actions.clone()
    actions, reward, terminated = b.actions.clone(), b.reward.clone(), b.terminated.clone()
    obs[over], state[over], reward[~b.mask] = torch.nan, torch.nan, torch.nan
    available[over] = torch.rand(available[over].shape, generator=g) < 0.3
    actions[~b.mask] = torch.randint(0, available.shape[-1], actions[~b.mask].shape, generator=g)
    return EpisodeBatch(obs, state, available, actions, reward, terminated, b.mask)
