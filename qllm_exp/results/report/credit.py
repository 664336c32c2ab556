"""The picture of a function's credit along an episode, drawn in a process of its own: no simulator can take the report with it."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from qllm_exp.errors import UserError

LIMIT_S = 180.0  # seconds for one picture


def credit_picture(folder: Path, trained: bool) -> str:
    """An SVG file, of the function in a run's folder, on the task and under the settings of that run.

    Args:
        trained: whether the team acts by the run's policy; otherwise at random.

    Raises:
        UserError: says why there is no picture, whatever the reason.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_drawn, args=(folder, trained, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_S):
            raise UserError(f"drawing took more than {LIMIT_S:.0f} s")
        good, said = ours.recv()
    except EOFError:
        process.join()
        raise UserError(f"the process that plays the episode ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if not good:
        raise UserError(said)
    return str(said)


def _drawn(folder: Path, trained: bool, answer: "Connection[tuple[bool, str], object]") -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a simulator prints is not the command's output
    try:
        answer.send((True, _draw(folder, trained)))
    except UserError as error:
        answer.send((False, str(error)))
    except Exception as error:  # of a simulator, a library or a user's own environment: the report says it and goes on
        answer.send((False, f"{type(error).__name__}: {error}"))


def _draw(folder: Path, trained: bool) -> str:
    import torch
    from matplotlib import rc_context

    from qllm_exp.credit import stored_function
    from qllm_exp.explain.explain import picture
    from qllm_exp.explain.figures import FONTS
    from qllm_exp.explain.policy import load_policy
    from qllm_exp.generation import provide
    from qllm_exp.results.figures.style import save
    from qllm_exp.results.report.svg import drawn
    from qllm_exp.runs.run_directory import RunDirectory

    torch.set_num_threads(1)
    directory = RunDirectory(folder)
    run, function = directory.read_config(), stored_function.load(directory.tfcaf)
    with provide.environment(run) as env, rc_context(FONTS):
        act = load_policy(folder, env) if trained else None
        figure = picture(function, env, provide.enforced(run, env), act)
        return drawn(lambda path: save(figure, path))
