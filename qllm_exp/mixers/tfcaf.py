"""QLLM's mixer (arXiv 2504.12961): a training-free credit-assignment function f(q, s), written by a language model.

    Q_tot = n * f(q, s)                   (uniform weights 1/n give VDN)

f has no parameters. For a function that is affine in q, f(q, s) = w(s) . q + b(s), w and b are read off it by evaluating
it at q = 0 and at the unit vectors, and

    Q_tot = n * (sum_i g(w_i(s)) q_i + b(s)),    g(w) = max(w, 0) with the IGM gate on, g(w) = w with it off.

With the gate on (Definition 1 of version 4 of the paper: no agent's contribution is negative) dQ_tot/dQ_i = n g(w_i(s)) >= 0
for every state by construction, so that the joint argmax is made of the individual argmaxes. An agent whose weight the
function makes negative is muted, not turned round: nothing the function says of it asks for the opposite sign.
A function that is not affine in q has no such weights: with the gate off it is evaluated as it is, with it on it is refused.

Deviations from the publication:
1. The gate holds by construction; the public code trusts the written function.
2. Training runs a tensor program that was read off the function and verified, never the model's Python (tfcaf/verify.py).
3. The prompts' table of the state is made from the environment's own layout, where the public code keeps texts by hand.
4. No return is shown to the evaluator, as published; `tfcaf.selection=probe` chooses by short training runs instead.
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
    name: str = "tfcaf"


class Tfcaf(Mixer):
    """Runs the tensor program of a stored function.

    Args:
        program: (agents_q [B, n], state [B, S]) -> [B, 1], qllm_exp.credit.program.Program.
        affine: whether the program is affine in agents_q.
        enforce: whether the IGM gate is on.
    """

    learns = False

    def __init__(self, program: Any, affine: bool, enforce: bool) -> None:
        super().__init__()
        self.program, self.affine, self.enforce = program, affine, enforce
        self.monotone = enforce
        if enforce and not affine:
            raise UserError(
                "mixer.igm=enforce needs a credit-assignment function that is affine in the agents' Qs, and this one is not. "
                "Use mixer.igm=relax, or another function (mixer.file=...)."
            )

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        n = agent_qs.shape[-1]
        rows = state.reshape(-1, state.shape[-1])
        if not self.affine:
            whole: Tensor = n * self.program(agent_qs.reshape(-1, n), rows)
            return whole.view(agent_qs.shape[:-1])
        weights, bias = self.program.weights_and_bias(rows)
        if self.enforce:
            weights = weights.clamp(min=0)
        affine: Tensor = torch.linalg.vecdot(agent_qs.reshape(-1, n), weights) + bias.squeeze(-1)
        return n * affine.view(agent_qs.shape[:-1])


def make(config: Config, env: TeamEnv) -> Tfcaf:
    """The mixer of the stored function in `config.file`.

    Raises:
        UserError: no file is given, or its function is for other sizes than the environment's.
    """
    if not config.file:
        raise UserError("mixer=tfcaf needs a credit-assignment function: llm=bundled, or mixer.file=PATH.")
    return mixer_of(stored_function.load(Path(config.file)), config.igm, env)


def mixer_of(function: Any, igm: str, env: TeamEnv) -> Tfcaf:
    """The mixer that runs a stored function, with the IGM gate on (igm='enforce'), off ('relax') or as the task declares ('auto').

    Raises:
        UserError: the function is for other sizes than the environment's.
    """
    function.check_fits(env)
    enforce = igm == "enforce" or (igm == "auto" and env.task.monotonic)
    return Tfcaf(function.program, function.program.affine(extreme_states(env)), enforce)
