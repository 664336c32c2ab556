"""For notebooks: the package's commands from a cell, as they are typed in a shell."""

import shlex
import subprocess
import sys

from qllm_exp.errors import UserError


def shell(command: str) -> None:
    """Run `python -m qllm_exp...` by the notebook's own Python, in its folder, and print what it says while it says it.

    Args:
        command: as in a shell, of several lines if need be; nothing but quotes is special.

    Raises:
        UserError: for a command that is not one of this package; where it ends with another exit code than 0.
    """
    words = shlex.split(command)
    module = words[2].partition(".")[0] if words[:2] == ["python", "-m"] and len(words) > 2 else ""
    if module not in ("qllm_exp", "launch"):
        raise UserError(f"{command!r} is no command of this package. Write python -m qllm_exp..., as in a shell.")
    with subprocess.Popen(
        [sys.executable, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise UserError(f"{' '.join(words)} ended with exit code {process.returncode}; what it printed says why.")
