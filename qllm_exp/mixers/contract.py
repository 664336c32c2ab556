"""Checks of the contract of mixers/base.py, for any mixer. `qllm-exp check mixer=NAME` and the tests of the package run them.

Each check raises ContractError with one line: what is wrong, what the contract says, and usually what to change.
Shapes: B, T leading dimensions, n agents, A actions, S columns of the state.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import ContractError
from qllm_exp.mixers.base import JointAction, Mixer

CONTRACT = "the contract of Mixer in qllm_exp/mixers/base.py"
STATES = 12  # states that the checks need
_LEADING = (4, 3)  # leading dimensions in most checks
_DRAWS = 20  # random parameters with which the sign of dQ_tot/dQ_i is checked


@dataclass(frozen=True)
class MixerMaker:
    """Builds mixers of one configuration.

    Attributes:
        name: name of the mixer, for messages.
        env: the environment that the mixers are built for.
        states: states of its task, [STATES, S].
        build: builds a mixer, whose parameters are drawn from torch's global generator.
    """

    name: str
    env: TeamEnv
    states: Tensor
    build: Callable[[], Any]

    def make(self, seed: int = 0) -> Mixer:
        """Return a new mixer with the parameters of a seed."""
        torch.manual_seed(seed)
        mixer = self.build()
        if not isinstance(mixer, Mixer):
            raise self.broken(f"make() returned {type(mixer).__name__}, expected a Mixer")
        return mixer

    def inputs(self, *leading: int) -> tuple[Tensor, Tensor]:
        """Return individual Qs [..., n] of a normal distribution, and states [..., S] of the task.

        Args:
            leading: the leading dimensions.
        """
        generator = torch.Generator().manual_seed(0)
        qs = torch.randn(*leading, self.env.n_agents, generator=generator)
        return qs, self.states[: math.prod(leading)].reshape(*leading, -1).clone()

    def joint_action(self, *leading: int) -> tuple[JointAction, Tensor]:
        """Return a joint action in which every action is available, and states [..., S].

        Args:
            leading: the leading dimensions.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (*leading, self.env.n_agents, self.env.n_actions)
        actions = torch.randint(self.env.n_actions, shape[:-1], generator=generator)
        available = torch.ones(shape, dtype=torch.bool)
        return JointAction(torch.randn(shape, generator=generator), available, actions), self.inputs(*leading)[1]

    def expect(self, values: Any, shape: tuple[int, ...], names: str, method: str) -> None:
        """Raise ContractError unless values are a finite float32 tensor of a shape.

        Args:
            values: what a method returned.
            shape: the expected shape.
            names: the shape in words.
            method: the method.
        """
        if not isinstance(values, Tensor):
            raise self.broken(f"{method}() returned {type(values).__name__}, expected a tensor")
        if tuple(values.shape) != shape:
            raise self.broken(f"{method}() returned shape {list(values.shape)}, expected {list(shape)}, i.e. {names}")
        if values.dtype != torch.float32:
            dtype = str(values.dtype).removeprefix("torch.")
            raise self.broken(f"{method}() returned dtype {dtype}, expected float32")
        if not torch.isfinite(values).all():
            raise self.broken(f"{method}() returned NaN or infinite values in states of the task")

    def broken(self, problem: str) -> ContractError:
        """Return the error of a mixer that breaks the contract."""
        return ContractError(f"mixer={self.name}: {problem} ({CONTRACT}).")


def check_declarations(maker: MixerMaker) -> list[str]:
    """Declarations: monotone, learns, per_agent, unrestricted"""
    mixer = maker.make()
    for attribute in ("monotone", "learns", "per_agent"):
        if not isinstance(getattr(mixer, attribute, None), bool):
            raise maker.broken(f"it does not declare {attribute}=True or {attribute}=False")
    trainable = any(parameter.requires_grad for parameter in mixer.parameters())
    if trainable != mixer.learns:
        problem = "has trainable parameters" if trainable else "has no trainable parameter"
        raise maker.broken(f"learns={mixer.learns}, but it {problem}")
    if mixer.unrestricted is not None and not isinstance(mixer.unrestricted, Mixer):
        raise maker.broken(f"unrestricted is {type(mixer.unrestricted).__name__}, expected a Mixer or None")
    if mixer.unrestricted is not None and type(mixer).td_weight is Mixer.td_weight:
        raise maker.broken("it has an unrestricted mixer, but does not implement td_weight()")
    return []


def check_shapes(maker: MixerMaker) -> list[str]:
    """Shapes and values of Q_tot and of the losses"""
    mixer = maker.make()
    for leading, dimensions in (((5,), "[B]"), (_LEADING, "[B, T]")):
        qs, state = maker.inputs(*leading)
        joint, joint_state = maker.joint_action(*leading)
        agents = (maker.env.n_agents,) if mixer.per_agent else ()
        names = f"{dimensions[:-1]}, n]" if agents else dimensions
        maker.expect(mixer(qs, state), (*leading, *agents), names, "forward")
        q_tot = mixer.q_tot(joint, joint_state)
        maker.expect(q_tot, (*leading, *agents), names, "q_tot")
        loss = mixer.auxiliary_loss(joint, joint_state, q_tot)
        if loss is not None:
            maker.expect(loss, leading, dimensions, "auxiliary_loss")
        if mixer.unrestricted is not None:
            best = mixer.unrestricted.q_tot(joint, joint_state)
            maker.expect(mixer.td_weight(joint, q_tot, torch.zeros_like(q_tot), best), leading, dimensions, "td_weight")
    return []


def check_rows(maker: MixerMaker) -> list[str]:
    """Q_tot of a state does not depend on the other states of a batch, nor on chance"""
    mixer = maker.make()
    qs, state = maker.inputs(*_LEADING)
    copies = qs.clone(), state.clone()
    whole, repeated = mixer(qs, state), mixer(qs, state)
    if not torch.equal(whole, repeated):
        raise maker.broken("forward() gives other values the second time: no randomness and no memory are allowed")
    if not (torch.equal(copies[0], qs) and torch.equal(copies[1], state)):
        raise maker.broken("forward() writes into its arguments")
    in_one_row = mixer(qs.flatten(0, 1).unsqueeze(0), state.flatten(0, 1).unsqueeze(0))
    parts = {"all steps in one row, [1, B * T, n]": in_one_row.view_as(whole)}
    for row in range(_LEADING[0]):
        for column in range(_LEADING[1]):
            part = slice(row, row + 1), slice(column, column + 1)
            alone = whole.clone()
            alone[part] = mixer(qs[part], state[part])
            parts[f"element [{row}, {column}] alone"] = alone
    for name, values in parts.items():
        if not torch.allclose(values, whole, rtol=1e-4, atol=1e-5):
            raise maker.broken(
                f"forward() gives other values for {name} than in a batch [B, T, n]: Q_tot of a time step must not depend on "
                "the others"
            )
    return []


def check_gradient(maker: MixerMaker) -> list[str]:
    """Gradient of Q_tot: reaches every agent, and has the declared sign"""
    notes = []
    mixer = maker.make()
    unused = torch.ones(maker.env.n_agents, dtype=torch.bool)
    for draw in range(_DRAWS):
        if draw and not mixer.learns:
            break
        mixer = maker.make(draw)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.mul_(3)
        qs, state = maker.inputs(*_LEADING)
        qs.requires_grad_()
        q_tot = mixer(qs, state)
        if not q_tot.requires_grad:
            raise maker.broken("forward() gives no gradient for the individual Qs: do not detach them")
        (slopes,) = torch.autograd.grad(q_tot.sum(), qs)
        unused &= (slopes == 0).all(0).all(0)
        if mixer.monotone and (slopes < 0).any():
            lowest = float(slopes.min())
            raise maker.broken(
                f"monotone=True, but dQ_tot/dQ_i is {lowest:.3g} in a random state with random parameters"
            )
    if unused.any():
        agents = ", ".join(str(agent) for agent in unused.nonzero().flatten().tolist())
        notes.append(f"dQ_tot/dQ_i is 0 in all tried states for agent {agents}")
    return notes


def check_copies(maker: MixerMaker) -> list[str]:
    """Target copies and checkpoints"""
    mixer, other = maker.make(0), maker.make(1)
    qs, state = maker.inputs(*_LEADING)
    expected = mixer(qs, state)
    try:
        target = copy.deepcopy(mixer)
    except Exception as error:  # a mixer may hold anything
        raise maker.broken(
            f"copy.deepcopy() fails, which target networks need: {type(error).__name__}: {error}"
        ) from None
    if not torch.equal(target(qs, state), expected):
        raise maker.broken("a copy.deepcopy() of it gives other values")
    try:
        other.load_state_dict(mixer.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise maker.broken(f"load_state_dict() does not take the state_dict() of an equal mixer: {reason}") from None
    if not torch.equal(other(qs, state), expected):
        raise maker.broken(
            "with the parameters of another, it gives other values: register what is random as parameter or buffer"
        )
    return []


CHECKS: tuple[Callable[[MixerMaker], list[str]], ...] = (
    check_declarations,
    check_shapes,
    check_rows,
    check_gradient,
    check_copies,
)
