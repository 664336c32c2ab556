"""Credit-assignment functions: load, generate and verify them, and see the credit that they assign."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllm_exp.errors import UserError, choose

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from qllm_exp.credit.stored_function import StoredFunction
    from qllm_exp.envs.base import TeamEnv
    from qllm_exp.explain.episodes import ActFunction


def load_function(name: str | Path) -> "StoredFunction":
    """Return a stored credit-assignment function.

    Args:
        name: a file, such as a run's tfcaf.json; a bundled function by its task, such as 'lbf/8x8-2p-2f-coop-2s'; or the first
            digits of the key of a generated function.

    Returns:
        `source` (Python), `program` (the tensor program that training runs, from agents_q [B, n] and global_state [B, S] to
        [B, 1]), `prompts`, `transcript`, `provenance`, `cost`, `verdict`; `save(path)` writes it to a file.

    Raises:
        UserError: there is no such function, or its file is not valid.

    Examples:
        >>> print(qllm_exp.load_function("lbf/8x8-2p-2f-coop-2s").source)
    """
    from qllm_exp.config.compose import compose_run
    from qllm_exp.generation.provide import find_function

    return find_function(str(name), compose_run(["mixer=tfcaf"]))


def generate(overrides: Sequence[str]) -> "StoredFunction":
    """Return the credit-assignment function of a configuration; a language model writes it if it is not stored yet.

    Args:
        overrides: as after `qllm-exp tfcaf generate`, e.g. ['env=lbf', 'llm=openai', 'tfcaf.rounds=2'].

    Returns:
        The function, as `load_function` returns it.

    Raises:
        UserError: the configuration is wrong, the language model cannot be reached, or no candidate is accepted.

    Examples:
        >>> function = qllm_exp.generate(["env=mpe", "llm=deepseek"])
        >>> function.cost["usd"]
        0.0043
    """
    from qllm_exp.config.compose import compose_run
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide
    from qllm_exp.search import search
    from qllm_exp.sweep.local import Local
    from qllm_exp.sweep.prepare import check, prepare

    prepared = prepare(check(compose_run(["mixer=tfcaf", *overrides])), lambda run: search(run, Local()))
    return stored_function.load(provide.locate(prepared.config).path)


def verify(source: str, env: "TeamEnv", igm: str = "auto") -> "StoredFunction":
    """Verify the source of a credit-assignment function as the answer of a language model is verified, and return the function.

    The source is checked against an allow-list, runs only in a sandbox, and is probed on states of the task.

    Args:
        source: Python code with one function `credit_assignment(agents_q, global_state)`.
        env: the environment that the function is for; episodes are started in it.
        igm: IGM gate: 'enforce' (on), 'relax' (off), or 'auto' (on if the task is declared monotonic).

    Returns:
        The function, as `load_function` returns it. It is not stored; `save(path)` writes the file for `mixer.file=PATH`.

    Raises:
        UserError: the function is refused; the message says in which stage, why, and what to write instead.

    Examples:
        >>> function = qllm_exp.verify(open("mine.py").read(), qllm_exp.make_env("lbf"))
        >>> function.save("mine.json")
        >>> qllm_exp.run(["env=lbf", "mixer=tfcaf", "mixer.file=mine.json"])
    """
    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation import verify as verification
    from qllm_exp.generation.provide import import_function

    try:
        accepted = verification.verify(source, env, _gate_is_on(igm, env))
    except Refused as refused:
        raise UserError(f"refused ({refused.stage}): {refused.reason}") from None
    return import_function(accepted, env, "Python source")


def assign_credit(
    function: "StoredFunction", env: "TeamEnv", states: Any, q: Any = None, igm: str = "auto"
) -> "pandas.DataFrame":
    """Return the credit that a function assigns to each agent in each state: dQ_tot/dQ_i, 1 for equal credit as in VDN.

    Args:
        function: the credit-assignment function.
        env: its environment.
        states: T global states: rows of `play`, or an array or tensor [T, S].
        q: [T, n] individual Qs at which the gradient is taken; None: 0. Irrelevant for a function that is affine in them.
        igm: IGM gate, as in `verify`; where it is on, negative credit becomes 0.

    Returns:
        A column 'agent 0', 'agent 1', ... for each agent, and a row for each state.

    Raises:
        UserError: the function does not fit the environment or fails on its states, the states lack a column, or the gate is
            on and the function is not affine.

    Examples:
        >>> env = qllm_exp.make_env("lbf")
        >>> function = qllm_exp.load_function("lbf/8x8-2p-2f-coop-2s")
        >>> qllm_exp.assign_credit(function, env, qllm_exp.play(env)).plot()
    """
    import numpy as np
    import pandas
    import torch

    from qllm_exp.api.teams import state_columns
    from qllm_exp.credit.probe_states import extreme_states
    from qllm_exp.explain.attribution import credits

    function.check_fits(env)
    function.check_values(extreme_states(env))
    affine = function.program.is_affine(extreme_states(env))
    index = None
    if isinstance(states, pandas.DataFrame):
        columns = state_columns(env.layout)
        missing = [name for name in columns if name not in states]
        if missing:
            task = f"{env.task.env}/{env.task.task}"
            raise UserError(
                f"The states have no column {missing[0]!r}. Pass rows of play(env) for {task}, or an array [T, S]."
            )
        index, states = states.index, np.array(states[columns], np.float32)
    rows = torch.as_tensor(states, dtype=torch.float32, device=env.device)
    individual_qs = None if q is None else torch.as_tensor(q, dtype=torch.float32, device=env.device)
    credit = credits(function, affine, _gate_is_on(igm, env), rows, individual_qs)
    names = [f"agent {agent}" for agent in range(env.n_agents)]
    return pandas.DataFrame(credit.cpu().numpy(), index=index, columns=names)


def plot_credit(
    function: "StoredFunction",
    env: "TeamEnv",
    policy: "ActFunction | None" = None,
    seed: int = 0,
    igm: str = "auto",
    output: str | Path | None = None,
) -> "Figure":
    """Plot the credit of each agent along an episode, with rewards, actions, events and scenes.

    The episode is the first of `play(env, policy, seed=seed)` with rewards that are not all equal.

    Args:
        function: the credit-assignment function.
        env: its environment.
        policy: a team from `load_policy`, or any function of the same arguments; None: uniformly random actions.
        seed: seed of the environment and of the random actions.
        igm: IGM gate, as in `verify`.
        output: a .png, .pdf or .svg file to write as well.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: as `assign_credit`, or the file cannot be written.

    Examples:
        >>> policy = qllm_exp.load_policy("runs/RUN")
        >>> function = qllm_exp.load_function("runs/RUN/tfcaf.json")
        >>> qllm_exp.plot_credit(function, policy.env, policy, output="credit.pdf")
    """
    from matplotlib import rc_context

    from qllm_exp.explain import explain
    from qllm_exp.explain.figures import FONTS
    from qllm_exp.results.figures.style import check_figure_path, save

    path = None if output is None else Path(output)
    if path is not None:
        check_figure_path(path)
    with rc_context(FONTS):
        figure = explain.plot_credit(function, env, _gate_is_on(igm, env), policy, seed)
        save(figure, path)
    return figure


def _gate_is_on(igm: str, env: "TeamEnv") -> bool:
    """Return whether the IGM gate is on in an environment."""
    choose("igm", igm, ("auto", "enforce", "relax"))
    return igm == "enforce" or (igm == "auto" and env.task.monotonic)
