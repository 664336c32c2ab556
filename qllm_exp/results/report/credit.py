"""The credit figure of a function along an episode, drawn in a separate process, so a simulator cannot crash the report."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from qllm_exp.errors import UserError

TIMEOUT_S = 180.0  # for one figure


def credit_figure(folder: Path, trained: bool) -> str:
    """Return the credit figure of a run's function as SVG, on the task and with the settings of the run.

    Args:
        folder: the run directory.
        trained: whether the team acts with the run's policy; otherwise at random.

    Raises:
        UserError: the figure cannot be drawn, for whatever reason.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_figure, args=(folder, trained, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_S):
            raise UserError(f"drawing took more than {TIMEOUT_S:.0f} s")
        succeeded, content = receiver.recv()
    except EOFError:
        process.join()
        raise UserError(f"the process that plays the episode ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not succeeded:
        raise UserError(content)
    return str(content)


def _send_figure(folder: Path, trained: bool, sender: "Connection[tuple[bool, str], object]") -> None:
    """Send (True, SVG) or (False, error message)."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep a simulator's output out of the command's output
    try:
        sender.send((True, _draw(folder, trained)))
    except UserError as error:
        sender.send((False, str(error)))
    except Exception as error:  # from a simulator, a library or a user's environment: the report shows it and continues
        sender.send((False, f"{type(error).__name__}: {error}"))


def _draw(folder: Path, trained: bool) -> str:
    import torch
    from matplotlib import rc_context

    from qllm_exp.credit import stored_function
    from qllm_exp.explain.explain import plot_credit
    from qllm_exp.explain.figures import FONTS
    from qllm_exp.explain.policy import load_policy
    from qllm_exp.generation import provide
    from qllm_exp.results.figures.style import save
    from qllm_exp.results.report.svg import render_svg
    from qllm_exp.runs.run_directory import RunDirectory

    torch.set_num_threads(1)
    directory = RunDirectory(folder)
    run, function = directory.read_config(), stored_function.load(directory.tfcaf)
    with provide.small_environment(run) as env, rc_context(FONTS):
        act = load_policy(folder, env) if trained else None
        figure = plot_credit(function, env, provide.igm_enforced(run, env), act)
        return render_svg(lambda path: save(figure, path))
