"""Verification: the cascade of checks that a generated function must pass before training may use it.

1, 2  static    one function, only names of the allow-list                       static_check.py, nothing is run
3     run, trace, convert, program, limits                                       sandbox.py, in a child process
4     probe     its tensor program, on states of the task and on others           probes.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.generation.probes import Probe
from qllm_exp.generation.sandbox import export_all
from qllm_exp.generation.state_reading import misread_columns


@dataclass(frozen=True)
class Accepted:
    """A function that passed verification.

    Attributes:
        source: the source, unchanged.
        function: name of the function in the source.
        program: the tensor program, which training runs.
        affine: whether f(q, s) = sum_i w_i(s) q_i + b(s) on all probe states.
        notes: allowed properties that a reader should know, e.g. which agents the IGM gate mutes, or columns that seem misread.
    """

    source: str
    function: str
    program: Program
    affine: bool
    notes: tuple[str, ...]


def verify(source: str, env: TeamEnv, enforce: bool, timeout_s: float = 60) -> Accepted:
    """Verify one function.

    Args:
        source: Python source with one function.
        env: the task; episodes are started in it to sample states.
        enforce: whether the IGM gate is on.
        timeout_s: limit in processor seconds in the child process, and again in the probes.

    Raises:
        Refused: the function is not accepted.
    """
    (result,) = verify_all([source], env, enforce, timeout_s)
    if isinstance(result, Refused):
        raise result
    return result


def verify_all(sources: Sequence[str], env: TeamEnv, enforce: bool, timeout_s: float = 60) -> list[Accepted | Refused]:
    """Verify several functions, each independently of the others.

    Args:
        sources: Python sources with one function each.
        env: the task; episodes are started in it to sample states.
        enforce: whether the IGM gate is on.
        timeout_s: limit in processor seconds per function in the child process, and again in the probes.

    Returns:
        The verdicts in the order of `sources`.
    """
    probe = Probe(env, enforce, timeout_s)
    exported = export_all(sources, env.n_agents, env.state_dim, timeout_s, probe.states_for_source())
    results: list[Accepted | Refused] = []
    for source, traced in zip(sources, exported, strict=True):
        try:
            if isinstance(traced, Refused):
                raise traced
            affine, notes = probe.check(traced.program, traced.lines)
            warnings = misread_columns(source, traced.program, traced.lines, env.layout)
            results.append(Accepted(source, traced.function, traced.program, affine, (*notes, *warnings)))
        except Refused as refused:
            results.append(refused)
    return results
