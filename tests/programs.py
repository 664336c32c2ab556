"""Stand-ins for programs that this machine may lack."""

import os
from pathlib import Path

import pytest

# The control program of MPS. Its daemon is a process that only waits; CUDA_MPS_PIPE_DIRECTORY/pid has its id. {calls} is a file
# with a line for each call. With MPS_FAULT in the environment no daemon starts.
MPS_CONTROL = """
if [ "$1" = -d ]; then
  echo "start $CUDA_VISIBLE_DEVICES $CUDA_MPS_PIPE_DIRECTORY" >> {calls}
  [ -z "$MPS_FAULT" ] || {{ echo "$MPS_FAULT" >&2; exit 1; }}
  sleep 600 &
  echo $! > "$CUDA_MPS_PIPE_DIRECTORY/pid"
else
  read -r command
  echo "$command $CUDA_VISIBLE_DEVICES $CUDA_MPS_PIPE_DIRECTORY" >> {calls}
  kill -9 "$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid")"
fi
"""


def write_program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a shell script under the name of a program, and put it first on the path.

    Args:
        folder: for the script; it is created.
        name: name of the program.
        script: its lines, without the first.
        monkeypatch: of pytest.
    """
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    if not os.environ["PATH"].startswith(f"{folder}:"):
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
