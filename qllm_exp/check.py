"""The command `qllm-exp check KEY=VALUE ...`: whether an environment, a mixer or an algorithm keeps its contract."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.config.device import resolve_device
from qllm_exp.errors import ContractError, UserError, error_line
from qllm_exp.utils.text import inert, inert_lines

_DESCRIPTION = """\
Check whether an environment, a mixer or an algorithm keeps its contract: shapes, dtypes, masks, ranges, seeds, exact
resumption, gradients. It is meant for your own; those of the package keep theirs.
"""
_EPILOG = """\
examples:
  %(prog)s --config-dir my_conf env=mine               an environment
  %(prog)s --config-dir my_conf env=mine env.task=big  the same with options
  %(prog)s --config-dir my_conf mixer=mine env=lbf     a mixer, and the environment that it is built for
  %(prog)s --config-dir my_conf algorithm=mine         an algorithm

Checked is what the command line chooses: env, mixer, algorithm. Exit codes: 0 all checks are passed, 1 some are not,
2 invalid command.
"""
GROUPS = ("env", "mixer", "algorithm")
_PARTNERS = ("vdn", "none", "qmix")  # mixers to check an algorithm with, if the command line chooses none
_ENV_COPIES = 4  # copies of the environment that mixers and algorithms are checked with
_Check = Callable[[Any], list[str]]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: the command line, without the name of the program.

    Returns:
        The exit code: 0 all checks are passed, 1 some are not, 2 invalid command.
    """
    parser = argparse.ArgumentParser(
        prog="qllm-exp check",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="FOLDER", help="folder with your YAML files"
    )
    parser.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="what to check, e.g. env=mine or mixer=mine; further options"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        return check([*(f"--config-dir={folder}" for folder in options.config_dir), *options.overrides])
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2


def check(overrides: Sequence[str]) -> int:
    """Check what overrides choose, print a line per check, and return the exit code.

    Args:
        overrides: as on the command line of a run, e.g. ['env=mine', '--config-dir=my_conf'].

    Raises:
        UserError: the configuration is not valid.
    """
    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.envs import contract as env_contract
    from qllm_exp.envs import env_module, make_env
    from qllm_exp.mixers import contract as mixer_contract
    from qllm_exp.mixers import make_mixer
    from qllm_exp.training import contract as algorithm_contract

    chosen = [group for group in GROUPS if any(_group(override) == group for override in overrides)]
    if not chosen:
        raise UserError(f"Nothing to check. Choose {', '.join(f'{group}=NAME' for group in GROUPS)}, e.g. env=lbf.")
    run = _compose(overrides, chosen)
    device = "cpu" if run.device == "auto" else resolve_device(run.device)
    env_module(run.env.name).check(run.env)
    env_maker = env_contract.EnvMaker(run.env, lambda config, count, seed: make_env(config, count, seed, device))
    passed = True
    if "env" in chosen:
        passed = _run_checks(f"env={run.env.name} env.task={run.env.task}", env_contract.CHECKS, env_maker)
    others = [group for group in ("mixer", "algorithm") if group in chosen]
    if others and not passed:
        print(f"not checked: {' and '.join(others)}, which need an environment that keeps its contract")
        return 1
    if not others:
        return 0 if passed else 1
    with env_maker.open(num_envs=_ENV_COPIES) as env:
        config = _with_function(run)
        if "mixer" in chosen:
            from qllm_exp.credit.probe_states import task_states

            states = task_states(env, mixer_contract.STATES).cpu()
            maker = mixer_contract.MixerMaker(config.name, env, states, lambda: make_mixer(config, env))
            passed = _run_checks(f"mixer={config.name}", mixer_contract.CHECKS, maker)
        if "algorithm" in chosen and passed:
            small = replace(run, train=replace(run.train, batch_episodes=2 * _ENV_COPIES))
            algorithm = algorithm_contract.AlgorithmMaker(
                run.algorithm.name, env, lambda: make_algorithm(small, env, make_mixer(config, env))
            )
            title = f"algorithm={run.algorithm.name} mixer={run.mixer.name}"
            passed = _run_checks(title, algorithm_contract.CHECKS, algorithm)
    return 0 if passed else 1


def _group(override: str) -> str:
    """Return the group that an override is about: 'env' of 'env=lbf', '+env.size=3' and 'env.name=mine'."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def _compose(overrides: Sequence[str], chosen: Sequence[str]) -> schema.RunConfig:
    """Compose the configuration; the mixer is one that the algorithm accepts if the command line chooses none."""
    from qllm_exp.algorithms import check_combination

    if "mixer" in chosen:
        run = compose_run(overrides)
        if "algorithm" in chosen:
            check_combination(run.algorithm.name, run.mixer.name)
        return run
    for mixer in _PARTNERS:
        run = compose_run([*overrides, f"mixer={mixer}"])
        try:
            check_combination(run.algorithm.name, mixer)
            return run
        except UserError:
            continue
    raise UserError(f"algorithm={run.algorithm.name} accepts none of {', '.join(_PARTNERS)}. Add mixer=NAME.")


def _with_function(run: schema.RunConfig) -> Any:
    """Return the options of the mixer, with the file of its credit-assignment function."""
    if not isinstance(run.mixer, schema.FunctionMixerConfig):
        return run.mixer
    from qllm_exp.generation import provide

    return replace(run.mixer, file=str(provide.locate(run).path))


def _run_checks(title: str, checks: Sequence[_Check], maker: Any) -> bool:
    """Run checks, print a line for each, and return whether all are passed. After the first that is not, no further is run.

    Args:
        title: what is checked.
        checks: the checks; the first line of the docstring names each.
        maker: their argument.
    """
    print(inert(title))
    for number, check in enumerate(checks):
        name = (check.__doc__ or check.__name__).partition("\n")[0]
        try:
            notes = check(maker)
        except Exception as error:  # code of the user's own may raise anything
            message = str(error) if isinstance(error, UserError) else error_line(error)
            if not isinstance(error, ContractError):
                message = f"{title.partition(' ')[0]}: {message}"
            print(f"  FAILED  {name}\n          {inert_lines(message)}")
            remaining = len(checks) - number - 1
            if remaining:
                print(f"  {remaining} further checks were not run")
            return False
        print(f"  passed  {name}", *(f"          note: {inert(note)}" for note in notes), sep="\n")
    return True
