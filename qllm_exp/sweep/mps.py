"""NVIDIA's Multi-Process Service (MPS): processes that share a GPU compute on it at the same time, not in turns.

The daemons belong to a process of their own, `python -m qllm_exp.sweep.mps FOLDER GPU ...`. It starts one for each GPU, prints
READY, and stops them when its input ends: when the pool has ended, and also when the pool's process was killed. Each daemon sees
one GPU only, since a daemon serves no more than one instance of a partitioned GPU (MIG), and so that a fault on one GPU does not
reach the runs on another.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.sweep.fork_server import IGNORED_SIGNALS
from qllm_exp.sweep.pool import Slot

CONTROL = "nvidia-cuda-mps-control"
READY = "ready"
START_S = 60  # for a daemon to start
QUIT_S = 300  # for runs to reach a checkpoint after a request to quit; then their daemon ends without them
END_S = 30  # that a pool waits for the daemons to stop; they then stop without it


@contextlib.contextmanager
def mps_daemons(slots: Sequence[Slot], is_wanted: bool) -> Iterator[Sequence[Slot]]:
    """Run an MPS daemon for each GPU of some slots.

    Args:
        slots: resources of each run at a time.
        is_wanted: False: no daemon is started.

    Yields:
        The slots, with the folder of the daemon of their GPU; unchanged where they have no GPU.

    Raises:
        UserError: there is no such daemon on this machine, or it does not start.
    """
    gpus = list(dict.fromkeys(slot.gpu for slot in slots if slot.gpu))
    if not is_wanted or not gpus:
        yield slots
        return
    if shutil.which(CONTROL) is None:
        raise UserError(
            f"hydra.launcher.mps=true: there is no {CONTROL} on {socket.gethostname()}. It comes with NVIDIA's driver. "
            "Use hydra.launcher.mps=false, or put it on the PATH (for jobs with hydra.launcher.setup)."
        )
    # Short, since the path of a socket in it may have 107 bytes, and on a disk of this machine.
    folder = Path(tempfile.mkdtemp(prefix="mps_"))
    process = subprocess.Popen(
        [sys.executable, "-m", "qllm_exp.sweep.mps", str(folder), *gpus],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        message = process.stdout.readline().strip()
        if message != READY:
            raise UserError(
                f"hydra.launcher.mps=true: {message or 'the daemon ended at once'}. Use hydra.launcher.mps=false."
            )
        pipes = {gpu: str(_pipe(folder, number)) for number, gpu in enumerate(gpus)}
        yield [replace(slot, gpu=_seen_as(slot.gpu), mps_pipe=pipes[slot.gpu]) if slot.gpu else slot for slot in slots]
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.stdout.close()


def _seen_as(gpu: str) -> str:
    """Return the name of a GPU in the processes that use it through its daemon, which counts the GPUs that it sees from 0."""
    return "0" if gpu.isdigit() else gpu


def _pipe(folder: Path, number: int) -> Path:
    """Return the folder of the pipes of a daemon, by which processes find it."""
    return folder / str(number) / "pipe"


def main(arguments: Sequence[str]) -> int:
    """Start the daemons, and stop them when the input ends.

    Args:
        arguments: a folder for their files, which is removed in the end, and the GPUs, as CUDA_VISIBLE_DEVICES names them.

    Returns:
        Exit code: 0, or 1 if a daemon did not start; the reason is printed.
    """
    # A cluster sends them to every process of a job. The runs still need the daemons, until they have reached a checkpoint.
    for signal_number in IGNORED_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    folder, started = Path(arguments[0]), []
    try:
        for number, gpu in enumerate(arguments[1:]):
            pipe, log = _pipe(folder, number), folder / str(number) / "log"
            for path in (pipe, log):
                path.mkdir(parents=True)
            environment = os.environ | {
                "CUDA_VISIBLE_DEVICES": gpu,
                "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
                "CUDA_MPS_LOG_DIRECTORY": str(log),
            }
            started.append(environment)
            code, output = _control(environment, "-d", log / "start.txt")
            if code:
                print(f"{CONTROL} -d for GPU {gpu} on {socket.gethostname()} failed: {output}", flush=True)
                return 1
        print(READY, flush=True)
        sys.stdin.read()
        return 0
    finally:
        for environment in started:
            _control(environment, "", folder / "quit.txt", f"quit -t {QUIT_S}\n")
        shutil.rmtree(folder, ignore_errors=True)


def _control(environment: dict[str, str], option: str, output: Path, command: str = "") -> tuple[int, str]:
    """Call the control program.

    Args:
        environment: environment variables, which tell the daemon.
        option: '-d' starts the daemon; '' sends it a command.
        output: file for its output. The daemon may keep its output open, so that the end of a pipe would never come.
        command: the command.

    Returns:
        The exit code, and the output in one line.
    """
    with open(output, "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                [CONTROL, *filter(None, [option])],
                input=command,
                stdout=file,
                stderr=file,
                text=True,
                env=environment,
                timeout=QUIT_S + END_S if command else START_S,
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, str(error)
    return code, " ".join(output.read_text(errors="replace").split()) or f"exit code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
