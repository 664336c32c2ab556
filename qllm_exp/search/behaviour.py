"""What a credit-assignment function computes on probe states, by which equal functions are recognised before any training.

Two functions that agree on the states of the task, and on the extreme ones that play can reach, train a team in the same way,
however they are written. The values compared are those that training sees: Q_tot and dQ_tot/dQ_i after the IGM gate.

Shapes: M states, K = 2 M rows, n agents.
"""

import torch
from torch import Tensor

from qllm_exp.credit.probe_states import extreme_states, moderate_mask, task_states
from qllm_exp.credit.program import Program
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.tfcaf import Tfcaf

_STATES = 256  # states of the task
_SCALE = 3.0  # the agents' values are drawn from -_SCALE to _SCALE


class Behaviours:
    """Computes and compares behaviours on the probe states of a task.

    Args:
        env: the task; episodes are started in it.
        enforce: whether the IGM gate is on.
        tolerance: largest difference of equal functions, relative to the values.
    """

    def __init__(self, env: TeamEnv, enforce: bool, tolerance: float) -> None:
        states = torch.cat([task_states(env, _STATES).cpu(), extreme_states(env).cpu()])
        states = states[moderate_mask(env.layout, states)]
        generator = torch.Generator().manual_seed(0)
        self._states = states.repeat(2, 1)
        self._layout = env.layout
        self._q = (torch.rand(len(self._states), env.n_agents, generator=generator) * 2 - 1) * _SCALE
        self._enforce, self._tolerance = enforce, tolerance

    def of(self, program: Program, affine: bool) -> Tensor:
        """Return the behaviour of a function.

        Args:
            program: its tensor program.
            affine: whether it is affine in the agents' Qs.

        Returns:
            [K, n + 1]: credit of each agent, and Q_tot.
        """
        return self._on(self._states, program, affine)

    def _on(self, states: Tensor, program: Program, affine: bool) -> Tensor:
        """Return the behaviour of a function on states [K, state_dim]."""
        q = self._q.clone().requires_grad_()
        with torch.enable_grad():
            q_tot = Tfcaf(program, affine, self._enforce)(q, states)
            (credit,) = torch.autograd.grad(q_tot.sum(), q, materialize_grads=True)
        return torch.cat([credit, q_tot.detach().unsqueeze(1)], 1)

    def fields_read(self, program: Program, affine: bool) -> list[str]:
        """Return the fields of the state that a function depends on, with one name for all entities of a kind, e.g. 'food level'.

        A field counts if the behaviour changes where its values are those of other probe states.

        Args:
            program: its tensor program.
            affine: whether it is affine in the agents' Qs.
        """
        order = torch.randperm(len(self._states), generator=torch.Generator().manual_seed(0))
        behaviour = self.of(program, affine)
        names: dict[str, None] = {}
        for field in self._layout:
            states = self._states.clone()
            states[:, field.columns] = self._states[order][:, field.columns]
            if not self.are_equal(behaviour, self._on(states, program, affine)):
                names[f"{field.entity} {field.name}"] = None
        return list(names)

    def is_affine(self, program: Program) -> bool:
        """Whether a function is affine in the agents' Qs on the probe states."""
        return program.is_affine(self._states)

    def plain_sum(self) -> Tensor:
        """Return the behaviour of the plain sum (VDN), [K, n + 1]."""
        return torch.cat([torch.ones_like(self._q), self._q.sum(1, keepdim=True)], 1)

    def are_equal(self, first: Tensor, second: Tensor) -> bool:
        """Whether two behaviours are those of one function, up to the tolerance."""
        allowed = self._tolerance * (1 + torch.maximum(first.abs(), second.abs()))
        return bool(((first - second).abs() <= allowed).all())


def distance(first: Tensor, second: Tensor) -> float:
    """Return the mean difference of the credit of two behaviours [K, n + 1]; 1 is the credit of an agent in the plain sum."""
    return float((first - second)[:, :-1].abs().mean())
