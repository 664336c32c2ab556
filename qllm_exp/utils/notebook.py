"""Run commands of the package from a notebook cell, as typed in a shell."""

import shlex
import subprocess
import sys

from qllm_exp.errors import UserError


def shell(command: str) -> None:
    """Run a `python -m qllm_exp...` command and print its output as it appears.

    The command runs with the notebook's own Python, in the notebook's folder.

    Args:
        command: the command line; it may span several lines. Quotes work as in a shell, other special characters do not.

    Raises:
        UserError: the command is not one of this package, or its exit code is not 0.
    """
    arguments = shlex.split(command)
    is_module_call = arguments[:2] == ["python", "-m"] and len(arguments) > 2
    package = arguments[2].partition(".")[0] if is_module_call else ""
    if package not in ("qllm_exp", "launch"):
        raise UserError(f"{command!r} is not a command of this package. Write python -m qllm_exp..., as in a shell.")
    with subprocess.Popen(
        [sys.executable, *arguments[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise UserError(
            f"{' '.join(arguments)} ended with exit code {process.returncode}. The output above states the reason."
        )
