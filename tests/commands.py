"""The package's commands for tests: each in a process of its own, forked from one that has imported what they all need.

`run(["-m", "qllm_exp", ...])` is `subprocess.run([sys.executable, "-m", "qllm_exp", ...], capture_output=True, text=True)` without
the two to three seconds that Python takes to import torch. What a command imports, reads or sets stays in its process. Tests
of what is imported, and of processes that are killed, start a Python of their own.
"""

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def run(
    arguments: Sequence[str],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    check: bool = False,
) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` (['-m', MODULE, ...]) to its end.

    Args:
        arguments: '-m', the module, and the arguments of its command.
        cwd: the folder that it runs in; None: this one.
        env: its whole environment; None: this process's.
        timeout: seconds, after which it is killed and `subprocess.TimeoutExpired` raised.
        check: whether an exit code other than 0 raises `subprocess.CalledProcessError`.
    """
    return _server().run(list(map(str, arguments)), cwd, env, timeout, check)


_servers: dict[int, "_Server"] = {}  # by process, so that a fork of this one has its own


def _server() -> "_Server":
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    return _servers[os.getpid()]


class _Server:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _ONE_THREAD
        )
        self._text = b""
        atexit.register(self.close)

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(10)

    def run(
        self, arguments: list[str], cwd: Path | str | None, env: Mapping[str, str] | None, timeout: float, check: bool
    ) -> "subprocess.CompletedProcess[str]":
        assert arguments[0] == "-m" and self._process.stdin is not None
        with tempfile.TemporaryDirectory(prefix="command-") as folder:
            order = {
                "arguments": arguments[1:],
                "cwd": str(cwd or os.getcwd()),
                "environment": dict(os.environ if env is None else env),
                "output": folder,
            }
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            pid = self._answer(60.0)["pid"]
            try:
                code = self._answer(timeout)["code"]
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                self._answer(10.0)
                raise subprocess.TimeoutExpired(arguments, timeout, *self._output(folder)) from None
            stdout, stderr = self._output(folder)
        if check and code:
            raise subprocess.CalledProcessError(code, arguments, stdout, stderr)
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    def _output(self, folder: str) -> tuple[str, str]:
        out, err = ((Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return out, err

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._text:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            more = os.read(self._process.stdout.fileno(), 65536)
            assert more, "the process that forks commands has ended"
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _serve() -> None:
    """Fork for each line read; answer with the process, then with its exit code."""
    _import()
    orders, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)
    for line in orders:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            _command(order)
        os.write(answers, json.dumps({"pid": pid}).encode() + b"\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answers, json.dumps({"code": code}).encode() + b"\n")


def _import() -> None:
    import hydra  # noqa: F401
    import torch

    from qllm_exp import algorithms, mixers  # noqa: F401
    from qllm_exp.algorithms import q_learning  # noqa: F401
    from qllm_exp.config import compose, load, overrides  # noqa: F401
    from qllm_exp.credit import stored_function  # noqa: F401
    from qllm_exp.envs import lbf, matrix, mpe  # noqa: F401
    from qllm_exp.generation import provide  # noqa: F401
    from qllm_exp.results.figures import per_task  # noqa: F401
    from qllm_exp.results.records import collect  # noqa: F401
    from qllm_exp.sweep import launch, local, plan, single_run  # noqa: F401
    from qllm_exp.training import trainer  # noqa: F401

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser imports torch's compiler


def _command(order: dict[str, Any]) -> None:
    """What a forked process does, as `python -m MODULE ...` would, and nothing after it."""
    code = 1
    try:
        os.setsid()
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for name, handle in (("stdout", 1), ("stderr", 2)):
            file = os.open(os.path.join(order["output"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:0] = [order["cwd"], *own]
        sys.argv[1:] = order["arguments"][1:]
        runpy.run_module(order["arguments"][0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
