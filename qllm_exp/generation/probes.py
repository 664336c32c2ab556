"""Probes: stage 4 of verification, the tensor program of a function on states of the task and on others.

This stage runs the program, which is data and safe, never the source. With Q_tot = n f(q, s) it requires:

1. a float32 result [B, 1] for every batch size;
2. finite values and gradients up to |q| = 1000;
3. rows that do not depend on each other;
4. equal results for equal inputs, also on the GPU if there is one;
5. unchanged inputs;
6. a bounded scale (MAX_WEIGHT, MAX_BIAS);
7. credit for every agent in some state;
8. with the IGM gate on, a weighted sum of the agents' values that the gate does not silence. mixers/tfcaf.py describes the
   gate.

The states are those of random play, extreme ones of the layout, and those that a directed search finds (directed_search.py):
for each operation that interval arithmetic cannot prove harmless, the state within the ranges at which it is most likely to go
wrong. In columns without bounds, play is taken to reach 10; beyond that, a value that is not finite is a note, not a fault.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from qllm_exp.credit.probe_states import describe_state, extreme_states, moderate_mask, random_states, task_states
from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateField
from qllm_exp.generation.directed_search import ranges, risks, search

MAX_WEIGHT = 100.0  # limit of |df/dQ_i|, which is 1/n for VDN, and 1 if a single agent gets all credit
MAX_FAR_WEIGHT = 1e4  # the same in states that play does not reach, and with the gate off for |q| beyond 30
MAX_BIAS = 1000.0  # limit of |n b(s)|, where b is the result at q = 0: beyond the returns of any task
MAX_SECONDS = 1.0  # processor seconds for 64 rows, forward and backward; a typical function needs a thousandth of that
_STATES = 256  # states of the task
_IN_CHILD = 32  # states of the task on which the child runs the source too
_NO_CREDIT = 1e-6  # |dQ_tot/dQ_i| up to here counts as no credit
_LITTLE_CREDIT = 1e-3  # and so does this share of the largest credit of an agent
_RARE = 0.05  # an agent that has credit in fewer states than this share is noted
_REACH = 10.0  # how far play is taken to go in columns without bounds
_REACH_Q = 30.0  # how large the agents' values are taken to be
_ROUNDING = 1.001
_ORDINARY_Q, _LARGE_Q = 3.0, 1000.0
_SAMPLES, _SAMPLES_AT_ONCE = 16_384, 4_096  # random states within the ranges
_BATCHES = (1, 2, 7, 64)
_TOLERANCE = 1e-3  # relative error between calls that may round differently
_MAX_DIFFERING = 0.05  # share of rows that may differ because rounding flips a comparison of the function


class Probe:
    """The probes of one task, for any number of programs. All tensors are on the CPU.

    Attributes:
        task_states: states of the task.
        extreme_states: extreme states of its layout.
        states: both together [M, state_dim].
        moderate: mask [M] of the states that play can reach.
        q: random values [M, n] from -3 to 3.
        unit_q: the same values scaled to -1 to 1.
    """

    def __init__(self, env: TeamEnv, enforce: bool, timeout_s: float) -> None:
        self.layout, self.n = env.layout, env.n_agents
        self.task_states, self.extreme_states = task_states(env, _STATES).cpu(), extreme_states(env).cpu()
        self.states = torch.cat([self.task_states, self.extreme_states])
        self.moderate = moderate_mask(self.layout, self.states)
        self.enforce, self.timeout_s = enforce, timeout_s
        generator = torch.Generator().manual_seed(0)
        self.q = (torch.rand(len(self.states), self.n, generator=generator) * 2 - 1) * _ORDINARY_Q
        self.unit_q = self.q / _ORDINARY_Q

    def states_for_source(self) -> Tensor:
        """Return the states [M, state_dim] on which the child process runs the source too."""
        return torch.cat([self.task_states[:: _STATES // _IN_CHILD], self.extreme_states])

    def check(self, program: Program, lines: Sequence[int] = ()) -> tuple[bool, tuple[str, ...]]:
        """Check a program.

        Args:
            program: the program.
            lines: line of the source for each operation; empty if not known.

        Returns:
            Whether the program is affine, and notes.

        Raises:
            Refused: the program is not accepted; the stage is 'probe' or 'limits'.
        """
        self.deadline = time.process_time() + self.timeout_s
        self._check_batches(program)
        is_finite, far_notes = self._check_finite(program, lines)
        self._check_rows(program)
        self._check_device(program)
        affine = program.is_affine(self.states[is_finite])
        if self.enforce and not affine:
            _refuse(
                "with the IGM gate on, the result must be a weighted sum of agents_q whose weights depend on global_state "
                "alone, sum_i w_i(s) Q_i + b(s), and this result is not: compute the weights from global_state only (no "
                "agents_q or agents_q.detach() in a softmax, a comparison, a product, a minimum or a maximum) and end "
                "with (weights * agents_q).sum(dim=1, keepdim=True)"
            )
        bias, _ = self._value_and_gradient(program, torch.zeros_like(self.q), self.states)
        _, gradient = self._value_and_gradient(program, self.unit_q, self.states)
        self._check_scale(gradient, bias)
        if not affine:
            self._check_large_gradients(program)
        self._search(program, lines, affine)
        self._check_samples(program, lines, affine)
        credit = self.n * gradient[: len(self.task_states)]
        notes = self._check_credit(credit) if affine or self.enforce else self._slope_notes(program, credit)
        return affine, (*far_notes, *notes)

    def _check_time(self) -> None:
        """Refuse a function whose probes take too long."""
        if time.process_time() > self.deadline:
            raise Refused("limits", f"its probes did not finish within {self.timeout_s:g} s: use fewer operations")

    def _value_and_gradient(self, program: Program, q: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the value [B, 1] and its gradient in q [B, n]; refuse errors, other shapes, changed inputs and timeouts."""
        self._check_time()
        q_copy, states_copy = q.clone().requires_grad_(), states.clone()
        try:
            with torch.enable_grad():
                value = program(q_copy, states_copy)
                (gradient,) = torch.autograd.grad(value.sum(), q_copy, materialize_grads=True)
        except Refused:
            raise
        except Exception as error:  # operations raise many kinds of errors for unsuitable values
            _refuse_failure(error, f"for |agents_q| up to {float(q.abs().max()):.0f}")
        if value.shape != (len(q), 1) or value.dtype != torch.float32:
            _refuse(f"it returns {value.dtype} {list(value.shape)} for a batch of {len(q)}: return [B, 1] of float32")
        if not (torch.equal(q_copy, q) and torch.equal(states_copy, states)):
            _refuse("it changes its inputs in place: work on a clone()")
        return value.detach(), gradient

    def _check_batches(self, program: Program) -> None:
        """Equal rows must give equal results for every batch size, and when called a second time."""
        results: dict[int, list[Tensor]] = {}
        for size in _BATCHES:
            start_time = time.process_time()
            parts = [slice(start, start + size) for start in range(0, max(_BATCHES), size)][: max(1, 32 // size)]
            calls = [self._value_and_gradient(program, self.q[part], self.states[part]) for part in parts]
            results[size] = [torch.cat(tensors) for tensors in zip(*calls, strict=True)]
            if size == max(_BATCHES) and time.process_time() - start_time > MAX_SECONDS:
                _refuse(
                    f"it takes more than {MAX_SECONDS:g} s for {size} rows: use fewer and smaller tensor operations"
                )
        whole, repeated = (self._value_and_gradient(program, self.q, self.states) for _ in range(2))
        for size, tensors in results.items():
            if not all(_same(expected[: len(actual)], actual) for expected, actual in zip(whole, tensors, strict=True)):
                _refuse(
                    f"the same row gives another result in a batch of {size} than in a larger one: let nothing depend "
                    "on the size of the batch, reduce along dim=1 or dim=-1 only, and use squeeze(-1), not squeeze()"
                )
        if not torch.equal(whole[0].nan_to_num(), repeated[0].nan_to_num()):
            _refuse("two calls with equal inputs give different results: use neither random nor uninitialised values")

    def _check_finite(self, program: Program, lines: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
        """Values and gradients must be finite for ordinary, large, equal and one-sided q in all states that play can reach.

        Returns:
            A mask [M] of the states in which they are finite, and a note if there are others.

        Raises:
            Refused: they are not finite in a state that play can reach, or the function itself has numbers that are not.
        """
        large = self.unit_q * _LARGE_Q
        is_finite = torch.ones(len(self.states), dtype=torch.bool)
        for q in (torch.zeros_like(large), self.q, self.q.abs(), -self.q.abs(), large, large.abs(), -large.abs()):
            value, gradient = self._value_and_gradient(program, q, self.states)
            finite_rows = value.isfinite().all(1) & gradient.isfinite().all(1)
            bad_rows = ~finite_rows & (self.moderate | _has_literals(program))
            if bad_rows.any():
                row = int(bad_rows.nonzero()[0])
                self._refuse_value(program, lines, q[row], self.states[row], value[row], gradient[row])
            is_finite &= finite_rows
        if bool(is_finite.all()):
            return is_finite, ()
        row = int((~is_finite).nonzero()[0])
        return is_finite, (f"its value is not finite in {self._where(row)}, which play does not reach",)

    def _refuse_value(
        self, program: Program, lines: Sequence[int], q: Tensor, state: Tensor, value: Tensor, gradient: Tensor
    ) -> NoReturn:
        """Refuse a value or a gradient that is not finite, and name the operation that makes it so."""
        name, result = ("value", value) if not bool(value.isfinite().all()) else ("gradient in agents_q", gradient)
        number = float(result[~result.isfinite()][0])
        causes = self._causes(program, q, state, lambda v, g: ~(v.isfinite().all(1) & g.isfinite().all(1)))
        place = f"a state within the ranges of the table ({describe_state(self.layout, state, causes)})"
        _refuse(
            f"its {name} is {number} with agents_q = {[round(x, 4) for x in q.tolist()]} in {place}"
            f"{_origin(program, lines, q, state)}: keep divisors, logarithms, square roots and exponents in bounds (add a "
            "constant, clamp, torch.softmax instead of exp over a sum)"
        )

    def _search(self, program: Program, lines: Sequence[int], affine: bool) -> None:
        """Refuse a function that goes wrong in a state that the directed search finds."""
        reach_q = _ORDINARY_Q if affine else _REACH_Q
        within = ranges(self.layout, self.n, _REACH, reach_q)
        try:
            unproven = risks(program, lines, within)
            q, states, owners = search(
                program, unproven, within, self.q[self.moderate], self.states[self.moderate], self._check_time
            )
        except Refused:
            raise
        except Exception as error:  # an index out of its table, for example
            _refuse_failure(error, "in a state within the ranges of the table")
        if owners:
            hints = [f"; look at the {risk.kind} in line {risk.line}" if risk.line else "" for risk in owners]
            self._check_found(program, lines, affine, q, states, hints)

    def _check_samples(self, program: Program, lines: Sequence[int], affine: bool) -> None:
        """Refuse a function that goes wrong in a random state within the ranges."""
        states = random_states(self.layout, _SAMPLES)
        reach_q = _ORDINARY_Q if affine else _REACH_Q
        q = (torch.rand(_SAMPLES, self.n, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach_q
        for part in torch.split(torch.arange(_SAMPLES), _SAMPLES_AT_ONCE):
            self._check_found(program, lines, affine, q[part], states[part], [""] * len(part))

    def _check_found(
        self, program: Program, lines: Sequence[int], affine: bool, q: Tensor, states: Tensor, hints: Sequence[str]
    ) -> None:
        """Refuse a function that goes wrong for one of these inputs, which are within the ranges.

        Args:
            program: the program.
            lines: line of the source for each operation.
            affine: whether the program is affine.
            q: values of the agents [R, n].
            states: states [R, state_dim].
            hints: a remark for each row, which a refusal contains.
        """
        value, gradient = self._value_and_gradient(program, q, states)
        bias, _ = self._value_and_gradient(program, torch.zeros_like(q), states)
        is_finite = value.isfinite().all(1) & gradient.isfinite().all(1)
        for row in (~is_finite).nonzero().flatten().tolist()[:1]:
            self._refuse_value(program, lines, q[row], states[row], value[row], gradient[row])

        def is_too_large(bias: Tensor, gradient: Tensor) -> Tensor:
            return (gradient.abs().amax(1) > MAX_WEIGHT * _ROUNDING) | (self.n * bias.abs().squeeze(1) > MAX_BIAS)

        too_large = is_too_large(bias, gradient)
        for row in too_large.nonzero().flatten().tolist()[:1]:
            agent = int(gradient[row].abs().argmax())
            causes = self._causes(program, q[row] if not affine else 0 * q[row], states[row], is_too_large)
            place = f"a state within the ranges of the table ({describe_state(self.layout, states[row], causes)})"
            if not affine:
                place = f"{place} with agents_q = {[round(x, 4) for x in q[row].tolist()]}"
            self._refuse_scale(agent, float(gradient[row, agent]), MAX_WEIGHT, place, hints[row])
            self._refuse_bias(float(bias[row]), place, hints[row])

    def _causes(
        self, program: Program, q: Tensor, state: Tensor, is_fault: Callable[[Tensor, Tensor], Tensor]
    ) -> list[StateField]:
        """Return the fields of a state in which a fault lies: with their values in an ordinary state it is gone.

        Args:
            program: the program.
            q: values of the agents [n].
            state: [state_dim].
            is_fault: maps values [R, 1] and gradients [R, n] to a mask [R] of the rows with the fault.
        """
        fields = list(self.layout)
        states = state.repeat(len(fields), 1)
        for row, field in enumerate(fields):
            states[row, field.columns] = self.task_states[0, field.columns]
        faults = is_fault(*self._value_and_gradient(program, q.repeat(len(fields), 1), states))
        return [field for field, is_there in zip(fields, faults.tolist(), strict=True) if not is_there]

    def _check_rows(self, program: Program) -> None:
        """Every second row must keep its result when all other rows change."""
        states, q = self.states.roll(2, 0), self.q.roll(2, 0) * 100
        states[::2], q[::2] = self.states[::2], self.q[::2]
        original_results = self._value_and_gradient(program, self.q, self.states)
        changed_results = self._value_and_gradient(program, q, states)
        for original, changed in zip(original_results, changed_results, strict=True):
            if not _same(original[::2], changed[::2]):
                _refuse(
                    "a row of the result depends on other rows: each row is a time step of its own, so reduce, normalise, "
                    "roll, sort and index along dim=1 or dim=-1, never along dim=0 or over all elements"
                )

    def _check_device(self, program: Program) -> None:
        """The GPU, if there is one, must give the same results as the CPU.

        Runs after the checks on the CPU have found errors, because an index out of range on a GPU aborts the process.
        """
        if not torch.cuda.is_available():
            return
        with torch.enable_grad():
            q = self.q.cuda().requires_grad_()
            value = program(q, self.states.cuda())
            (gradient,) = torch.autograd.grad(value.sum(), q, materialize_grads=True)
        expected_value, expected_gradient = self._value_and_gradient(program, self.q, self.states)
        for expected, actual in ((expected_value, value), (expected_gradient, gradient)):
            if not _same(expected, actual.detach().cpu()):
                _refuse(
                    "it gives other values on a GPU than on a CPU: do not depend on the order of equal values (sort, argmax)"
                )

    def _check_scale(self, weights: Tensor, bias: Tensor) -> None:
        """Refuse weights [M, n] and a bias [M, 1] that are too large; far from what play reaches, only weights that explode."""
        sizes = torch.where(self.moderate[:, None], weights.abs(), 0.0)
        row, agent = divmod(int(sizes.argmax()), self.n)
        self._refuse_scale(agent, float(weights[row, agent]), MAX_WEIGHT, self._where(row), "")
        row, agent = divmod(int(weights.abs().nan_to_num().argmax()), self.n)
        self._refuse_scale(agent, float(weights[row, agent]), MAX_FAR_WEIGHT, self._where(row), "")
        row = int(torch.where(self.moderate[:, None], bias.abs(), 0.0).argmax())
        self._refuse_bias(float(bias[row]), self._where(row), "")

    def _check_large_gradients(self, program: Program) -> None:
        """Refuse a function whose gradient explodes with the agents' values."""
        for scale, limit in ((_REACH_Q, MAX_WEIGHT), (_LARGE_Q, MAX_FAR_WEIGHT)):
            q = self.unit_q * scale
            _, gradient = self._value_and_gradient(program, q, self.states)
            sizes = torch.where(self.moderate[:, None], gradient.abs(), 0.0)
            row, agent = divmod(int(sizes.argmax()), self.n)
            place = f"{self._where(row)} with agents_q = {[round(x, 2) for x in q[row].tolist()]}"
            self._refuse_scale(agent, float(gradient[row, agent]), limit, place, "")

    def _refuse_scale(self, agent: int, weight: float, limit: float, place: str, hint: str) -> None:
        """Refuse a weight beyond the limit."""
        if abs(weight) > limit * _ROUNDING:
            _refuse(
                f"{_agent(agent)} has weight {weight:.4g} in {place}{hint}; the size of a weight may be up to {limit:g}: "
                "normalise the weights over the agents, e.g. torch.softmax(scores, dim=1), and add a constant to divisors"
            )

    def _refuse_bias(self, bias: float, place: str, hint: str) -> None:
        """Refuse a bias beyond the limit."""
        if self.n * abs(bias) > MAX_BIAS:
            _refuse(
                f"with all agents_q at 0 it gives {bias:.4g} in {place}{hint}; up to {MAX_BIAS:g} / n = "
                f"{MAX_BIAS / self.n:.4g} is allowed: scale the term that depends on the state alone down to the returns of the "
                "task, or leave it out"
            )

    def _check_credit(self, credit: Tensor) -> tuple[str, ...]:
        """Every agent must have credit, and with the gate on, every state must have some. Returns notes.

        Args:
            credit: [_STATES, n], credit in the states of the task.
        """
        sizes = credit.abs()
        least = max(_NO_CREDIT, _LITTLE_CREDIT * float(sizes.max()))
        for agent in range(self.n):
            if float(sizes[:, agent].max()) <= least:
                _refuse(
                    f"{_agent(agent)} never gets credit: its weight is at most {float(sizes[:, agent].max()) / self.n:.2g} in "
                    f"{_STATES} states of the task; give each of the {self.n} agents some weight, e.g. "
                    f"0.9 * weights + 0.1 / {self.n}"
                )
        rare = tuple(
            f"agent {agent} has hardly any credit in {_percent(sizes[:, agent] <= least)} of the task's states"
            for agent in range(self.n)
            if float((sizes[:, agent] > least).float().mean()) < _RARE
        )
        if not self.enforce:
            return rare
        muted = credit < -_NO_CREDIT
        advice = "make the weights non-negative, e.g. with torch.softmax(scores, dim=1)"
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
        return rare + tuple(
            f"the IGM gate mutes agent {agent} in {_percent(muted[:, agent])} of the task's states: its weight is negative"
            for agent in range(self.n)
            if muted[:, agent].any()
        )

    def _slope_notes(self, program: Program, credit: Tensor) -> tuple[str, ...]:
        """Check the credit of a function that is not affine; note where it falls as an agent's value rises.

        Args:
            program: the program.
            credit: [_STATES, n], credit in the states of the task.
        """
        notes = self._check_credit(credit)
        falls = credit < -_NO_CREDIT
        return notes + tuple(
            f"the result falls as the value of agent {agent} rises in {_percent(falls[:, agent])} of the task's states"
            for agent in range(self.n)
            if falls[:, agent].any()
        )

    def _where(self, row: int) -> str:
        """Describe a row of `states` for a message."""
        kind = "a state of the task" if row < len(self.task_states) else "an extreme state"
        return f"{kind} ({describe_state(self.layout, self.states[row])})"


def _refuse_failure(error: Exception, place: str) -> NoReturn:
    """Refuse a program that raises an error."""
    first_line = next(iter(str(error).splitlines()), type(error).__name__)[:300]
    _refuse(f"{place} it fails with '{first_line}': clamp an index to its table's size, and do not index by agents_q")


def _origin(program: Program, lines: Sequence[int], q: Tensor, state: Tensor) -> str:
    """Return ', from line 7' for the first operation whose result is not finite; '' if it is not known."""
    with torch.no_grad():
        values = program.all_values(q[None], state[None])
    for line, value in zip(lines, values[program.first_operation :], strict=False):
        tensors = value if isinstance(value, list | tuple) else [value]
        if line and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
            return f", from line {line}"
    return ""


def _has_literals(program: Program) -> bool:
    """Whether a number of the program itself is NaN or infinite; what overflows by arithmetic does not count."""
    text = json.dumps(program.to_json())
    return any(f'{{"float": "{name}"}}' in text for name in ("nan", "inf", "-inf"))


def _same(expected: Tensor, actual: Tensor) -> bool:
    """Whether two results agree, except in a few rows in which rounding may flip a comparison.

    Rows of `expected` that are not finite count as equal, because another check refuses them.
    """
    close = (expected - actual).abs() <= _TOLERANCE * (1 + expected.abs())
    return bool((~(close | ~expected.isfinite())).any(1).float().mean() <= _MAX_DIFFERING)


def _agent(index: int) -> str:
    """Return an agent for a message: 'agent 0 (agents_q[:, 0])'."""
    return f"agent {index} (agents_q[:, {index}])"


def _percent(rows: Tensor) -> str:
    """Return the share of true elements of a mask: '12.5 %'."""
    return f"{100 * float(rows.float().mean()):.1f} %"


def _refuse(reason: str) -> NoReturn:
    """Raise Refused('probe', reason)."""
    raise Refused("probe", reason)
