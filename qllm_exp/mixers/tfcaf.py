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
4. The evaluator sees no returns, as published. With `tfcaf.selection=probe`, short training runs select the function instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.credit import stored_function
from qllm_exp.credit.probe_states import extreme_states
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.mixers.base import Mixer


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
        if not self.affine:
            q_tot: Tensor = n * self.program(qs, states)
            return q_tot.view(agent_qs.shape[:-1])
        weights, bias = self.program.weights_and_bias(states)
        if self.enforce:
            weights = weights.clamp(min=0)
        value: Tensor = torch.linalg.vecdot(qs, weights) + bias.squeeze(-1)
        return n * value.view(agent_qs.shape[:-1])


def make(config: Config, env: TeamEnv) -> Tfcaf:
    """Build the mixer of the stored function in `config.file`.

    Raises:
        UserError: `config.file` is empty, or its function does not fit the sizes of the environment or fails on its states.
    """
    if not config.file:
        raise UserError("mixer=tfcaf needs a credit-assignment function: use llm=bundled, or mixer.file=PATH.")
    function = stored_function.load(Path(config.file))
    function.check_fits(env)
    function.check_values(extreme_states(env))  # a file that was written by hand has not been verified
    return make_from_function(function, config.igm, env)


def make_from_function(function: Any, igm: str, env: TeamEnv) -> Tfcaf:
    """Build the mixer that runs a stored function.

    Args:
        function: A StoredFunction.
        igm: IGM gate: 'enforce' (on), 'relax' (off) or 'auto' (on if the task is declared monotonic).
        env: The environment, for its sizes and its task.

    Raises:
        UserError: The function does not fit the sizes of the environment, or the gate is on and the function is not affine.
    """
    function.check_fits(env)
    enforce = igm == "enforce" or (igm == "auto" and env.task.monotonic)
    return Tfcaf(function.program, function.program.is_affine(extreme_states(env)), enforce)
