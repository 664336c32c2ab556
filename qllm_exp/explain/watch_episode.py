"""The episodes of an evaluation as a finished run plays them, with the credit of each agent at every step.

Credit of agent i is dQ_tot/dq_i under the run's own mixer, at the individual Qs of the actions taken; its share is
    c_i / sum_j |c_j|,
so that the sign stays and equal credit, which is VDN, is 1/n for each of the n agents.

Shapes: T steps, n agents, S columns of the state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.episodes import Episode
from qllm_exp.mixers.base import Mixer
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.rollout import rollout
from qllm_exp.training.timer import Timer


@dataclass(frozen=True)
class Played:
    """An episode, what it was worth, and what each agent had to do with that; all on the CPU.

    Attributes:
        total: the episode's return as evaluation reports it.
        qs: [T, n] individual Qs of the actions taken; None where the agents have none.
        credit: [T, n] dQ_tot/dq_i; None where the mixer is not known, or does not mix.
    """

    episode: Episode
    total: float
    qs: Tensor | None
    credit: Tensor | None

    @property
    def returns(self) -> Tensor:
        """[T] the return so far, the reward of the step included."""
        return self.episode.rewards.cumsum(0)


def play_evaluation(env: TeamEnv, algorithm: Algorithm, seed: int, count: int) -> list[Played]:
    """The first `count` episodes of the evaluation with that seed, which are those that `training.evaluation.evaluate` plays.

    Args:
        env: with as many copies as the run had, since they share their random numbers.
    """
    scratch, clock = EpisodeStorage(env, env.num_envs), Timer(env.device)
    env.seed(seed)
    generator = torch.Generator(env.device).manual_seed(seed)
    played: list[Played] = []
    while len(played) < count:
        totals = rollout(env, algorithm, scratch, None, generator, clock).tolist()
        qs = algorithm.action_qs(scratch.obs, scratch.actions.long())
        for copy in range(min(env.num_envs, count - len(played))):
            played.append(_played(scratch, copy, totals[copy], qs, algorithm.mixer))
    return played


def _played(scratch: EpisodeStorage, copy: int, total: float, all_qs: Tensor | None, mixer: Mixer | None) -> Played:
    length = int(scratch.lengths[copy])
    states = scratch.state[: length + 1, copy].clone()
    qs = None if all_qs is None else all_qs[:length, copy]
    ended = "terminated" if bool(scratch.terminated[length - 1, copy]) else "truncated"
    actions, rewards = scratch.actions[:length, copy].long(), scratch.reward[:length, copy].clone()
    given = None
    if mixer is not None and qs is not None and not mixer.per_agent:
        given = credit(mixer, qs, states[:-1]).cpu()
    episode = Episode(states.cpu(), actions.cpu(), rewards.cpu(), ended)
    return Played(episode, total, None if qs is None else qs.cpu(), given)


def credit(mixer: Mixer, qs: Tensor, states: Tensor) -> Tensor:
    """[T, n] dQ_tot/dq_i of a mixer that mixes, at individual Qs [T, n] in states [T, S]."""
    with torch.enable_grad():
        at = qs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(at, states).sum(), at, materialize_grads=True)
    return gradient


def share(given: Tensor) -> Tensor:
    """[T, n] the share of each agent in the sum of absolute credits [T, n], with its sign; 0 where all credit is 0."""
    whole = given.abs().sum(1, keepdim=True)
    return torch.where(whole > 0, given / whole, 0.0)
