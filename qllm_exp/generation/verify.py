"""The whole cascade that a generated function must pass before training may use it.

    1, 2  static    one function, words of the allow-list only                       static_check.py, nothing is run
    3     run, trace, convert, program, limits                                       export.py, in a child process
    4     probe     its tensor program on states of the task and on extreme ones     here

Stage 4 runs the program, which is data and safe, never the source. With Q_tot = n f(q, s) it asks for: float32 [B, 1] for
every batch size; finite values and gradients up to |q| = 1000; rows that do not depend on each other; equal results
for equal inputs, on the GPU too where there is one; inputs left alone; a bounded scale (MAX_WEIGHT, MAX_BIAS); credit
for every agent in some state; and with the IGM gate on, a weighted sum of the agents' values that the gate does
not silence (mixers/tfcaf.py says what the gate does).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from qllm_exp.credit.probe_states import describe, extreme_states, moderate, task_states
from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.generation.sandbox import export_all
from qllm_exp.generation.static_check import check

MAX_WEIGHT = 100.0  # |dQ_tot/dQ_i|: VDN has 1, and n for the one agent that gets all credit
MAX_BIAS = 1000.0  # |n b(s)|, b what the function gives at q = 0: beyond the returns of any task
MAX_SECONDS = 1.0  # of one processor for 64 rows, forward and backward; an ordinary function needs a thousandth
_STATES = 256  # of the task
_IN_CHILD = 32  # of these, on which the source is run too
_NO_CREDIT = 1e-6  # |dQ_tot/dQ_i| that counts as none
_LARGE_Q = 1000.0
_BATCHES = (1, 2, 7, 64)
_TOLERANCE = 1e-3  # relative, between runs that may round differently
_TIPPED = 0.05  # share of rows in which rounding may tip a comparison of the function


@dataclass(frozen=True)
class Accepted:
    """A function that passed.

    Attributes:
        source: as given. function: its name in the source.
        program: what training runs.
        affine: whether it is f(q, s) = sum_i w_i(s) q_i + b(s) on all probe states.
        notes: what a reader should know though it is allowed, in words, e.g. which agents the IGM gate mutes.
    """

    source: str
    function: str
    program: Program
    affine: bool
    notes: tuple[str, ...]


def verify(source: str, env: TeamEnv, enforce: bool, timeout_s: float = 60) -> Accepted:
    """Put one function through the cascade; raises Refused(stage, reason). Arguments as for `verify_all`."""
    (result,) = verify_all([source], env, enforce, timeout_s)
    if isinstance(result, Refused):
        raise result
    return result


def verify_all(sources: Sequence[str], env: TeamEnv, enforce: bool, timeout_s: float = 60) -> list[Accepted | Refused]:
    """Put candidates through the cascade, each judged apart; results in the order of `sources`.

    Args:
        sources: Python texts with one function each.
        env: the task; episodes are started in it, to sample states.
        enforce: whether the IGM gate is on.
        timeout_s: processor seconds that a candidate may take in the child process, and again in the probes.
    """
    probe = _Probe(env, enforce, timeout_s)
    few = torch.cat([probe.task[:: _STATES // _IN_CHILD], probe.extreme])
    results: list[Accepted | Refused] = []
    for source, program in zip(sources, export_all(sources, env.n_agents, env.state_dim, timeout_s, few), strict=True):
        try:
            if isinstance(program, Refused):
                raise program
            affine, notes = probe.judge(program)
            results.append(Accepted(source, check(source), program, affine, notes))
        except Refused as refused:
            results.append(refused)
    return results


class _Probe:
    """Stage 4 for the candidates of one task. All states are on the CPU."""

    def __init__(self, env: TeamEnv, enforce: bool, timeout_s: float) -> None:
        self.layout, self.n = env.layout, env.n_agents
        self.task, self.extreme = task_states(env, _STATES).cpu(), extreme_states(env).cpu()
        self.states = torch.cat([self.task, self.extreme])
        self.moderate = moderate(self.layout, self.states)
        self.enforce, self.timeout_s = enforce, timeout_s
        generator = torch.Generator().manual_seed(0)
        self.q = torch.rand(len(self.states), self.n, generator=generator) * 6 - 3
        self.unit = self.q / 3

    def judge(self, program: Program) -> tuple[bool, tuple[str, ...]]:
        """Whether the program is affine, and notes; raises Refused('probe' or 'limits', reason)."""
        self.deadline = time.process_time() + self.timeout_s
        self._check_batches(program)
        self._check_finite(program)
        self._check_rows(program)
        self._check_device(program)
        affine = program.affine(self.states)
        if self.enforce and not affine:
            _refuse(
                "with the IGM gate on, the result must be a weighted sum of agents_q whose weights depend on global_state "
                "alone, sum_i w_i(s) Q_i + b(s), and this one is not: compute the weights from global_state only (no "
                "agents_q or agents_q.detach() in a softmax, a comparison, a product, a minimum or a maximum) and end "
                "with (weights * agents_q).sum(dim=1, keepdim=True)"
            )
        bias, _ = self._both(program, torch.zeros_like(self.q), self.states)
        _, gradient = self._both(program, self.unit, self.states)
        credit = self.n * (program.weights_and_bias(self.states)[0] if affine else gradient)
        self._check_scale(credit, self.n * bias)
        return affine, self._check_credit(credit[: len(self.task)])

    def _both(self, program: Program, q: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Value [B, 1] and its gradient in q [B, n]; refuses errors, other shapes, changed inputs and lost time."""
        if time.process_time() > self.deadline:
            raise Refused("limits", f"its probes did not finish within {self.timeout_s:g} s: use fewer operations")
        given, state = q.clone().requires_grad_(), states.clone()
        try:
            with torch.enable_grad():
                value = program(given, state)
                (gradient,) = torch.autograd.grad(value.sum(), given, materialize_grads=True)
        except Refused:
            raise
        except Exception as error:  # what an operation raises for values that it cannot work with
            first = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            _refuse(
                f"for |agents_q| up to {float(q.abs().max()):.0f} it fails with '{first}': clamp an index to its "
                "table's size, and do not index by agents_q"
            )
        if value.shape != (len(q), 1) or value.dtype != torch.float32:
            _refuse(f"it returns {value.dtype} {list(value.shape)} for a batch of {len(q)}: return [B, 1] of float32")
        if not (torch.equal(given, q) and torch.equal(state, states)):
            _refuse("it changes its inputs in place: work on a clone()")
        return value.detach(), gradient

    def _check_batches(self, program: Program) -> None:
        """Every batch size gives the same for the same rows, and a second call the same again."""
        small: dict[int, list[Tensor]] = {}
        for size in _BATCHES:
            started = time.process_time()
            parts = [slice(at, at + size) for at in range(0, max(_BATCHES), size)][: max(1, 32 // size)]
            runs = [self._both(program, self.q[part], self.states[part]) for part in parts]
            small[size] = [torch.cat(found) for found in zip(*runs, strict=True)]
            if size == max(_BATCHES) and time.process_time() - started > MAX_SECONDS:
                _refuse(
                    f"it takes more than {MAX_SECONDS:g} s for {size} rows: use fewer and smaller tensor operations"
                )
        whole, again = (self._both(program, self.q, self.states) for _ in range(2))
        for size, found in small.items():
            if not all(_same(expected[: len(one)], one) for expected, one in zip(whole, found, strict=True)):
                _refuse(
                    f"the same row gives another result in a batch of {size} than in a larger one: let nothing depend "
                    "on the size of the batch, reduce along dim=1 or dim=-1 only, and use squeeze(-1), not squeeze()"
                )
        if not torch.equal(whole[0].nan_to_num(), again[0].nan_to_num()):
            _refuse("two calls with equal inputs give different results: use neither random nor uninitialised values")

    def _check_finite(self, program: Program) -> None:
        """Values and gradients are finite for ordinary, large, equal and one-sided q in all states."""
        large = self.unit * _LARGE_Q
        for q in (torch.zeros_like(large), self.q, self.q.abs(), -self.q.abs(), large, large.abs(), -large.abs()):
            for what, found in zip(("value", "gradient in agents_q"), self._both(program, q, self.states), strict=True):
                bad = (~found.isfinite()).any(1)
                if bad.any():
                    row = int(bad.nonzero()[0])
                    _refuse(
                        f"its {what} is {float(found[row][~found[row].isfinite()][0])} with agents_q = "
                        f"{[round(x, 2) for x in q[row].tolist()]} in {self._where(row)}: keep divisors, logarithms, square "
                        "roots and exponents in bounds (add a constant, clamp, torch.softmax instead of exp over a sum)"
                    )

    def _check_rows(self, program: Program) -> None:
        """Every second row keeps its result when all other rows change."""
        states, q = self.states.roll(2, 0), self.q.roll(2, 0) * 100
        states[::2], q[::2] = self.states[::2], self.q[::2]
        for kept, changed in zip(self._both(program, self.q, self.states), self._both(program, q, states), strict=True):
            if not _same(kept[::2], changed[::2]):
                _refuse(
                    "a row of the result depends on other rows: each row is a time step of its own, so reduce, normalise, "
                    "roll, sort and index along dim=1 or dim=-1, never along dim=0 or over all elements"
                )

    def _check_device(self, program: Program) -> None:
        """The GPU, where there is one, gives what the CPU gives. Comes after the CPU has found errors out: on a GPU an
        index out of range ends the process."""
        if not torch.cuda.is_available():
            return
        with torch.enable_grad():
            q = self.q.cuda().requires_grad_()
            value = program(q, self.states.cuda())
            (gradient,) = torch.autograd.grad(value.sum(), q, materialize_grads=True)
        for expected, found in zip(self._both(program, self.q, self.states), (value, gradient), strict=True):
            if not _same(expected, found.detach().cpu()):
                _refuse(
                    "it gives other values on a GPU than on a CPU: let no order of equal values decide (sort, argmax)"
                )

    def _check_scale(self, credit: Tensor, bias: Tensor) -> None:
        """Bounds for credit [B, n] and bias [B, 1] in all states but those far beyond what fields take in play."""
        ordinary = torch.where(self.moderate[:, None], credit.abs(), 0.0)
        if float(ordinary.max()) > MAX_WEIGHT:
            row, agent = divmod(int(ordinary.argmax()), self.n)
            _refuse(
                f"{_agent(agent)} has weight {float(credit[row, agent]) / self.n:.4g} in {self._where(row)}; the size of a "
                f"weight may be up to {MAX_WEIGHT:g} / n = {MAX_WEIGHT / self.n:.4g}: normalise the weights over the agents, "
                "e.g. torch.softmax(scores, dim=1), and add a constant to divisors"
            )
        ordinary = torch.where(self.moderate[:, None], bias.abs(), 0.0)
        if float(ordinary.max()) > MAX_BIAS:
            row = int(ordinary.argmax())
            _refuse(
                f"with all agents_q at 0 it gives {float(bias[row]) / self.n:.4g} in {self._where(row)}; up to "
                f"{MAX_BIAS:g} / n = {MAX_BIAS / self.n:.4g} is allowed: scale the term that depends on the state alone "
                "down to the returns of the task, or leave it out"
            )

    def _check_credit(self, credit: Tensor) -> tuple[str, ...]:
        """Every agent, and with the gate on every state, has credit; credit [_STATES, n] of the task's states."""
        for agent in range(self.n):
            if float(credit[:, agent].abs().max()) <= _NO_CREDIT:
                _refuse(
                    f"{_agent(agent)} never gets credit: the result does not depend on it in any of {_STATES} states of "
                    f"the task; give each of the {self.n} agents some weight, e.g. 0.9 * weights + 0.1 / {self.n}"
                )
        if not self.enforce:
            return ()
        muted, advice = credit < -_NO_CREDIT, "make the weights non-negative, e.g. by torch.softmax(scores, dim=1)"
        for agent in range(self.n):
            if float(credit[:, agent].max()) <= _NO_CREDIT:
                _refuse(
                    f"{_agent(agent)} has a negative weight, or none, in every state of the task, and the IGM gate turns "
                    f"negative weights into 0: {advice}"
                )
        silent = (credit <= _NO_CREDIT).all(1)
        if silent.any():
            _refuse(
                f"no agent has a positive weight in {_percent(silent)} of the task's states, so that the IGM gate, which "
                f"turns negative weights into 0, leaves no credit, e.g. in {self._where(int(silent.nonzero()[0]))}: {advice}"
            )
        return tuple(
            f"the IGM gate mutes agent {agent} in {_percent(muted[:, agent])} of the task's states: its weight is negative"
            for agent in range(self.n)
            if muted[:, agent].any()
        )

    def _where(self, row: int) -> str:
        kind = "a state of the task" if row < len(self.task) else "an extreme state"
        return f"{kind} ({describe(self.layout, self.states[row])})"


def _same(expected: Tensor, found: Tensor) -> bool:
    """Whether the rows agree, but for the few in which rounding tips a comparison. Rows that are not finite are left
    to the check for it."""
    close = (expected - found).abs() <= _TOLERANCE * (1 + expected.abs())
    return bool((~(close | ~expected.isfinite())).any(1).float().mean() <= _TIPPED)


def _agent(index: int) -> str:
    return f"agent {index} (agents_q[:, {index}])"


def _percent(rows: Tensor) -> str:
    return f"{100 * float(rows.float().mean()):.1f} %"


def _refuse(reason: str) -> NoReturn:
    raise Refused("probe", reason)
