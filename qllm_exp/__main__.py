"""The command `qllm-exp`, which is also `python -m qllm_exp`: a run, a sweep, or one of the other commands by its name."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import qllm_exp
from qllm_exp.config import help, overrides
from qllm_exp.config.compose import explain_error
from qllm_exp.config.registry import CONF
from qllm_exp.errors import RunFailed, UserError, nearest, user_traceback
from qllm_exp.utils.start_time import composing_without_mode, parse_files_once, rest_collector, wake_collector
from qllm_exp.utils.text import inert_lines

_COMMANDS = {
    "results": "qllm_exp.results.__main__",
    "tfcaf": "qllm_exp.tfcaf",
    "check": "qllm_exp.check",
    "status": "qllm_exp.cluster.status",
    "watch": "qllm_exp.cluster.watch",
    "logs": "qllm_exp.cluster.logs",
    "cancel": "qllm_exp.cluster.cancel",
    "retry": "qllm_exp.cluster.retry",
}
_OPTIONS: tuple[str, ...] = (  # options of this command, and those of Hydra
    *("--help", "-h", "--version", "--dry-run", "--multirun", "-m", "--run", "-r", *overrides.CONFIG_DIR_OPTIONS),
    *("--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i"),
    *("--hydra-help", "--shell-completion", "-sc", "--experimental-rerun"),
)


def run(composed: DictConfig) -> float:
    """Execute one run in this process.

    Returns:
        The return of the last evaluation, so that any Hydra sweeper can optimise it.
    """
    from qllm_exp.search import search
    from qllm_exp.sweep.single_run import run_one

    try:
        overrides.check_single_run(HydraConfig.get())
        return run_one(composed, search)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else 2)
    except Exception as error:  # here, since Hydra would print a line about it before `main` has it
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Print an error that code of the user's own raised, and return the exit code. Raise any other error again."""
    text = user_traceback(error)
    if not text:  # a fault of this package: the whole traceback is needed to find it
        raise error
    print(f"error: {inert_lines(text)}", file=sys.stderr)
    return 2


def _task(arguments: list[str]) -> Callable[[DictConfig], float]:
    """Return the function that Hydra calls for a single run, and hands to the launcher of a sweep.

    Args:
        arguments: arguments as typed. The launcher reads them from the function, for the record of the sweep: Hydra itself
            receives them rewritten.
    """

    def task(composed: DictConfig) -> float:
        return run(composed)

    task.arguments = arguments  # type: ignore[attr-defined]  # functions have no declared attributes
    return task


def main() -> int:
    """Execute the command line.

    Returns:
        Exit code. Of runs: 0 all are finished or submitted, 1 a run failed or is dead, 2 nothing was started, 3 some are not
        finished, e.g. interrupted at a checkpoint.
    """
    rest_collector()  # a run wakes it earlier
    try:
        return _command(sys.argv[1:])
    except Exception as error:
        return _report(error)
    finally:
        wake_collector()


def _command(arguments: list[str]) -> int:
    """Execute a command by its name, the help, or runs."""
    if arguments and arguments[0] in _COMMANDS:
        module = importlib.import_module(_COMMANDS[arguments[0]])
        return int(module.main(arguments[1:]))
    if "--version" in arguments:
        print(f"qllm_exp {qllm_exp.__version__}")
        return 0
    if "--help" in arguments or "-h" in arguments:
        return _help(arguments)
    return _train()


def _help(arguments: Sequence[str]) -> int:
    """Print the overview of all choices, or every value of those that are named."""
    try:
        names, folders = help.parse(arguments)
        print(help.values(names, folders) if names else help.overview(folders), end="")
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check_first_argument(arguments: Sequence[str]) -> None:
    """Raise UserError if the command line starts with a word that is neither a command nor an override, such as 'statsu'."""
    first = arguments[0] if arguments else "-"
    if "=" not in first and not first.startswith(("-", "~")):
        raise UserError(
            f"{first!r} is not a command.{nearest(first, _COMMANDS)} Commands: {', '.join(_COMMANDS)}. "
            "To set an option of a run, write KEY=VALUE, e.g. env=mpe."
        )


def _check_options(arguments: Sequence[str]) -> None:
    """Raise UserError for an option that neither this command nor Hydra has, such as '--dryrun' or '--seed'."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if not option.startswith("-") or option in _OPTIONS:
            continue
        hint = (
            nearest(option, _OPTIONS) or f" An option of a run is written without dashes: {option.lstrip('-')}=VALUE."
        )
        raise UserError(f"{option} is not an option of this command.{hint} All options: qllm-exp --help.")


def _train() -> int:
    """Compose and check the configuration of a run or sweep, execute it and show the result."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise errors to this function; Hydra would print them
    try:
        _check_first_argument(sys.argv[1:])
        _check_options(sys.argv[1:])
        task = _task(sys.argv[1:])
        arguments = sys.argv[1:]
        expanded = [overrides.expand_ranges(argument, arguments) for argument in arguments]
        sys.argv[1:] = overrides.to_hydra_arguments(expanded)
        parse_files_once()
        with composing_without_mode(sys.argv[1:]):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:  # while planning; runs that have started stop at a checkpoint
        print("interrupted; the same command resumes from here", file=sys.stderr)
        return 3
    except (HydraException, OmegaConfBaseException) as error:
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        print(f"error: {inert_lines(explain_error(error, arguments, CONF))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
