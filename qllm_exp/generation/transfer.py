"""Use of a stored function on another task than that which it was written for: same columns of the state, verified again."""

from dataclasses import replace
from itertools import zip_longest

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.credit.refused import Refused
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.probes import Probe
from qllm_exp.utils.text import count, inert

_TIMEOUT_S = 60.0  # processor seconds of the probes
_MAX_LISTED = 6  # columns in a message


def check_transfer(run: schema.RunConfig, function: StoredFunction, env: TeamEnv) -> None:
    """Check that a function that the user has named may be used on the task of a run.

    A function of another task needs `mixer.written_for`. The columns of the two states must then be the same, up to the ends of
    their ranges, and the tensor program must pass the verification on the states of the run's task.

    Args:
        run: the configuration of the run, with `mixer.file`.
        function: the function.
        env: the environment of the run.

    Raises:
        UserError: it may not; the message names the columns that differ, or what the verification found.
    """
    assert isinstance(run.mixer, schema.FunctionMixerConfig)
    declared = run.mixer.written_for
    origin, task = f"{function.env}/{function.task}", f"{env.task.env}/{env.task.task}"
    if declared and declared != origin:
        raise UserError(
            f"mixer.written_for={declared}, but mixer.file={run.mixer.file} was written for {inert(origin)}. Type "
            f"mixer.written_for={inert(origin)}, or choose another file."
        )
    if origin == task:
        return
    if not declared:
        function.check_fits(env)  # a function of other sizes cannot be used at all
        raise UserError(
            f"mixer.file={run.mixer.file} was written for {inert(origin)}, not for {task}. To use it there all the same, add "
            f"mixer.written_for={inert(origin)}: the columns of the two states are compared, and the function is verified again."
        )
    with provide.small_environment(_run_of(run, function, env)) as written_for:
        differences = differing_columns(written_for.layout, env.layout)
        if written_for.n_agents != env.n_agents:
            differences.insert(0, f"{written_for.n_agents} agents there, {env.n_agents} here")
    if differences:
        listed = "".join(f"\n  {line}" for line in differences[:_MAX_LISTED])
        hidden = len(differences) - _MAX_LISTED
        more = f"\n  and {count(hidden, 'more difference')}" if hidden > 0 else ""
        raise UserError(
            f"The function of {origin} cannot be used on {task}, whose state has other columns ({origin} there, {task} here):"
            f"{listed}{more}\nGenerate a function for {task}, or choose a task with the same columns."
        )
    try:
        Probe(env, provide.igm_enforced(run, env), _TIMEOUT_S).check(function.program)
    except Refused as refused:
        raise UserError(
            f"The function of {origin} does not pass the verification on {task}: {refused.reason}. Generate a function for {task}."
        ) from None


def _run_of(run: schema.RunConfig, function: StoredFunction, env: TeamEnv) -> schema.RunConfig:
    """Return a configuration with the task of a function, and the other options of the run's environment if it is the same."""
    if function.env in (run.env.name, env.task.env):  # an environment of a user may describe itself by another name
        return replace(run, env=replace(run.env, task=function.task))
    state = [] if function.state_kind == TeamEnv.state_kind else [f"env.state={function.state_kind}"]
    return replace(run, env=compose_run([f"env={function.env}", f"env.task='{function.task}'", *state]).env)


def differing_columns(origin: StateLayout, target: StateLayout) -> list[str]:
    """Return the columns that two layouts do not share, e.g. 'column 4: food 0 level there, food 0 position x here'.

    Ends of ranges may differ: a larger board has larger positions. What the values mean may not.

    Args:
        origin: the layout that a function was written for.
        target: the layout that it is to be used on.
    """
    lines = []
    for number, (first, second) in enumerate(
        zip_longest(_columns(origin), _columns(target), fillvalue=("nothing", ""))
    ):
        if first != second:
            texts = [
                name if first[0] != second[0] else f"{name} ({meaning or 'a pure number'})"
                for name, meaning in (first, second)
            ]
            lines.append(f"column {number}: {texts[0]} there, {texts[1]} here")
    return lines


def _columns(layout: StateLayout) -> list[tuple[str, str]]:
    """Return name and meaning of each column: its unit, its special values, and whether it is part of a one-hot field."""
    columns = []
    for field in layout:
        meanings = [
            field.unit,
            *(f"{value:g}: {text}" for value, text in field.special.items()),
            "one-hot" if field.one_hot else "",
        ]
        columns += [(f"{field.label} {component}", ", ".join(filter(None, meanings))) for component in field.components]
    return columns
