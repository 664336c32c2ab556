"""QLLM's mixer (arXiv 2504.12961): a training-free credit-assignment function f(q, s), written by a language model.

    Q_tot = n * f(q, s)                   (uniform weights 1/n give VDN)

f has no parameters. A function that is affine in q has the form f(q, s) = w(s) . q + b(s). Evaluating it at q = 0 and at the
unit vectors gives w and b, and

    Q_tot = n * (sum_i g(w_i(s)) q_i + b(s)),    g(w) = max(w, 0) with the IGM gate on, g(w) = w with it off.

With the gate on (Definition 1 in version 4 of the paper: no agent's contribution is negative) dQ_tot/dQ_i = n g(w_i(s)) >= 0
in every state by construction, so that the individual argmaxes form the joint argmax. An agent whose weight is negative is
muted; its sign is not reversed, because nothing in the function suggests the opposite sign. A function that is not affine in q
has no such weights: it is evaluated as it is with the gate off, and is an error with the gate on.

Deviations from the publication:
1. The gate holds by construction; the public code trusts the written function.
2. Training runs a verified tensor program that was derived from the function, never the model's Python (generation/verify.py).
3. The table of the state in the prompts is generated from the environment's layout; the public code maintains texts by hand.
4. The evaluator sees no returns, as published. A search (`tfcaf.search.method=best_of` or `evolve`) trains its candidates instead.
5. The numbers in the function are fixed, as published. `mixer.trainable_constants=true` trains them along with the agents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.credit import stored_function
from qllm_exp.credit.probe_states import extreme_states
from qllm_exp.credit.program import Program
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.mixers.base import Mixer

SMALLEST = 1e-3  # of the numbers that are trained: smaller ones keep a divisor or a logarithm from 0


@dataclass
class Config(schema.FunctionMixerConfig):
    """Options of `mixer=tfcaf`; conf/mixer/tfcaf.yaml explains them."""

    name: str = "tfcaf"


class Tfcaf(Mixer):
    """Runs the tensor program of a stored function.

    Args:
        program: Tensor program (agents_q [B, n], state [B, S]) -> [B, 1], a qllm_exp.credit.program.Program.
        affine: Whether the program is affine in agents_q.
        enforce: Whether the IGM gate is on.

    Raises:
        UserError: The IGM gate is on and the program is not affine.
    """

    learns = False

    def __init__(self, program: Any, affine: bool, enforce: bool) -> None:
        super().__init__()
        self.program, self.affine, self.enforce = program, affine, enforce
        self.monotone = enforce
        if enforce and not affine:
            raise UserError(
                "mixer.igm=enforce requires a credit-assignment function that is affine in the agents' Qs, and this one is not. "
                "Use mixer.igm=relax, or another function (mixer.file=PATH)."
            )

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot [...] of individual Qs [..., n] in states [..., state_dim]."""
        n = agent_qs.shape[-1]
        qs, states = agent_qs.reshape(-1, n), state.reshape(-1, state.shape[-1])
        constants = self.constants()
        if not self.affine:
            q_tot: Tensor = n * self.program(qs, states, *constants)
            return q_tot.view(agent_qs.shape[:-1])
        weights, bias = self.program.weights_and_bias(states, *constants)
        if self.enforce:
            weights = weights.clamp(min=0)
        value: Tensor = torch.linalg.vecdot(qs, weights) + bias.squeeze(-1)
        return n * value.view(agent_qs.shape[:-1])

    def constants(self) -> tuple[dict[int, Tensor], ...]:
        """Values in place of constants of the program; () if there are none."""
        return ()


class TrainableTfcaf(Tfcaf):
    """A credit-assignment function whose numbers are trained along with the agents: a mixer with some dozen parameters.

    With the IGM gate on, a constant keeps its sign, c = c_0 exp(theta): a weight that is positive as a product, a sum or a quotient
    of positive numbers stays so, and the gate does not begin to mute agents. With the gate off, c = c_0 + theta.

    Args:
        program: As for `Tfcaf`.
        affine: As for `Tfcaf`.
        enforce: As for `Tfcaf`.

    Raises:
        UserError: As for `Tfcaf`; or the function has no number to train.
    """

    learns = True

    def __init__(self, program: Program, affine: bool, enforce: bool) -> None:
        super().__init__(program.with_literals_as_constants(SMALLEST), affine, enforce)
        initial = self.program.constants
        if not initial:
            raise UserError(
                "mixer.trainable_constants=true: the credit-assignment function has no number to train. Set it to false, or "
                "choose another function (mixer.file=PATH)."
            )
        self._numbers = tuple(initial)
        for number, tensor in initial.items():
            self.register_buffer(f"initial_{number}", tensor, persistent=False)
            self.register_parameter(f"theta_{number}", nn.Parameter(torch.zeros_like(tensor)))

    def constants(self) -> tuple[dict[int, Tensor], ...]:
        """The trained values of the constants."""
        values = {}
        for number in self._numbers:
            initial, theta = getattr(self, f"initial_{number}"), getattr(self, f"theta_{number}")
            values[number] = initial * theta.exp() if self.enforce else initial + theta
        return (values,)

    def trained_program(self) -> Program:
        """Return the program with the trained values of its constants."""
        program: Program = self.program.with_constants(*self.constants())
        return program


def make(config: Config, env: TeamEnv) -> Tfcaf:
    """Build the mixer of the stored function in `config.file`.

    Raises:
        UserError: `config.file` is empty, or its function does not fit the sizes of the environment or fails on its states.
    """
    if not config.file:
        raise UserError("mixer=tfcaf needs a credit-assignment function: use llm=bundled, or mixer.file=PATH.")
    function = stored_function.load(Path(config.file))
    return make_from_function(function, config.igm, env, config.trainable_constants)


def make_from_function(function: Any, igm: str, env: TeamEnv, trainable_constants: bool = False) -> Tfcaf:
    """Build the mixer that runs a stored function.

    Args:
        function: A StoredFunction.
        igm: IGM gate: 'enforce' (on), 'relax' (off) or 'auto' (on if the task is declared monotonic).
        env: The environment, for its sizes and its task.
        trainable_constants: Whether the numbers in the function are trained.

    Raises:
        UserError: The function does not fit the sizes of the environment or fails on its states, or the gate is on and the function
            is not affine; or its constants cannot be trained.
    """
    function.check_fits(env)
    states = extreme_states(env)
    function.check_values(states)  # a file that was written by hand has not been verified
    enforce = igm == "enforce" or (igm == "auto" and env.task.monotonic)
    affine = function.program.is_affine(states)
    if not trainable_constants:
        return Tfcaf(function.program, affine, enforce)
    mixer = TrainableTfcaf(function.program, affine, enforce)
    try:
        mixer(torch.ones(len(states), env.n_agents, device=states.device), states).sum().backward()
    except RuntimeError as error:
        raise UserError(
            f"mixer.trainable_constants=true: the function cannot be differentiated twice ({str(error).partition(chr(10))[0]}). "
            "Functions traced before version 0.2 may assign to parts of a tensor; generate the function again."
        ) from None
    mixer.zero_grad()
    return mixer
