"""Episodes of an evaluation, replayed with a finished run's parameters, with the credit of each agent at every step.

Credit of agent i is dQ_tot/dq_i under the run's own mixer, at the individual Qs of the actions taken; its share is
    c_i / sum_j |c_j|,
which keeps the sign. With equal credit, as in VDN, the share is 1/n for each of the n agents.

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
class PlayedEpisode:
    """An episode with its return and each agent's part in it; all tensors are on the CPU.

    Attributes:
        episode: states, actions and rewards.
        episode_return: as evaluation reports it.
        qs: [T, n] individual Qs of the actions taken; None if the agents have none.
        credit: [T, n] dQ_tot/dq_i; None if there is no mixer, or if it does not mix.
    """

    episode: Episode
    episode_return: float
    qs: Tensor | None
    credit: Tensor | None

    @property
    def returns(self) -> Tensor:
        """[T] The return so far, including the reward of the step."""
        return self.episode.rewards.cumsum(0)


def play_evaluation(env: TeamEnv, algorithm: Algorithm, seed: int, count: int) -> list[PlayedEpisode]:
    """Replay the first episodes of an evaluation: the same ones that `training.evaluation.evaluate` plays.

    Args:
        env: with as many copies as in the run, since the copies share their random numbers.
        algorithm: with the trained parameters.
        seed: of the evaluation.
        count: number of episodes.
    """
    storage, timer = EpisodeStorage(env, env.num_envs), Timer(env.device)
    env.seed(seed)
    generator = torch.Generator(env.device).manual_seed(seed)
    played: list[PlayedEpisode] = []
    while len(played) < count:
        returns = rollout(env, algorithm, storage, None, generator, timer).tolist()
        qs = algorithm.action_qs(storage.obs, storage.actions.long())
        for copy in range(min(env.num_envs, count - len(played))):
            played.append(_played_episode(storage, copy, returns[copy], qs, algorithm.mixer))
    return played


def _played_episode(
    storage: EpisodeStorage, copy: int, episode_return: float, all_qs: Tensor | None, mixer: Mixer | None
) -> PlayedEpisode:
    """The episode of one copy of the environment."""
    length = int(storage.lengths[copy])
    states = storage.state[: length + 1, copy].clone()
    qs = None if all_qs is None else all_qs[:length, copy]
    ended = "terminated" if bool(storage.terminated[length - 1, copy]) else "truncated"
    actions, rewards = storage.actions[:length, copy].long(), storage.reward[:length, copy].clone()
    agent_credit = None
    if mixer is not None and qs is not None and not mixer.per_agent:
        agent_credit = credit(mixer, qs, states[:-1]).cpu()
    episode = Episode(states.cpu(), actions.cpu(), rewards.cpu(), ended)
    return PlayedEpisode(episode, episode_return, None if qs is None else qs.cpu(), agent_credit)


def credit(mixer: Mixer, qs: Tensor, states: Tensor) -> Tensor:
    """Return dQ_tot/dq_i of a mixer.

    Args:
        mixer: that mixes the individual Qs into one Q_tot.
        qs: [T, n] individual Qs.
        states: [T, S].

    Returns:
        [T, n] credit.
    """
    with torch.enable_grad():
        qs = qs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(qs, states).sum(), qs, materialize_grads=True)
    return gradient


def credit_share(credit: Tensor) -> Tensor:
    """Return each agent's share of the sum of absolute credits, with its sign; 0 where all credits are 0.

    Args:
        credit: [T, n].

    Returns:
        [T, n] shares.
    """
    total = credit.abs().sum(1, keepdim=True)
    return torch.where(total > 0, credit / total, 0.0)
