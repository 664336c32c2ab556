"""What every algorithm with a mixer has in common: the loss of what the mixer says of joint actions."""

import torch
from torch import Tensor

from qllm_exp.mixers.base import Joint, Mixer


def mixing_loss(
    mixer: Mixer, now: Joint, central: Joint | None, state: Tensor, q_tot: Tensor, target: Tensor
) -> Tensor:
    """The loss of each step: the squared error of q_tot, and what else the mixer asks for.

    Args:
        now: a joint action in states [..., state_dim]. central: the same with the Qs that an unrestricted mixer mixes.
        q_tot: [...] what `mixer.value` said of it, [..., n] of a mixer that is `per_agent`. target: alike, what it is to be.

    Returns:
        [...], or [..., n].
    """
    loss = (q_tot - target).square()
    if mixer.unrestricted is not None and central is not None:
        free = mixer.unrestricted.value(central, state)
        with torch.no_grad():
            at_best = Joint(central.all_qs, now.available, now.best_actions)
            best = mixer.unrestricted.value(at_best, state)
            share = mixer.weight(now, q_tot, target, best)
        loss = share * loss + (free - target).square()
    constraint = mixer.constraint(now, state, q_tot)
    return loss if constraint is None else loss + constraint
