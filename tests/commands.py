"""The package's commands for tests: each in a process of its own, forked from one that has imported what they all need.

`run(["-m", "qllm_exp", ...])` is `subprocess.run([sys.executable, "-m", "qllm_exp", ...], capture_output=True, text=True)`, and
`start` is `subprocess.Popen`, without the three seconds that Python takes to import torch. What a command imports, reads or sets
stays in its process; it has a session and a process group of its own, and a signal ends it like any other process. The fork
server of a sweep is forked as well. Tests of what is imported start a Python of their own.
"""

import atexit
import contextlib
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_SWEEPS = ("qllm_exp", "launch.retry")  # modules whose commands may start a sweep
_STAGES = 12  # fork servers of a search: one for each stage of a generation


def run(
    arguments: Sequence[object],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    check: bool = False,
    input: str = "",
    imports: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` (['-m', MODULE, ...] or ['-c', CODE, ...]) to its end.

    Args:
        arguments: '-m' and a module, or '-c' and code, and the arguments of the command.
        cwd: the folder that it runs in; None: this one.
        env: its whole environment; None: this process's.
        timeout: seconds, after which it is killed and `subprocess.TimeoutExpired` raised.
        check: whether an exit code other than 0 raises `subprocess.CalledProcessError`.
        input: its standard input.
        imports: 'litellm': it is forked from a process that has imported that too; 'wandb': ... that in place of what runs need.
    """
    command = Command(_server(imports), list(map(str, arguments)), cwd, env, input)
    try:
        stdout, stderr = command.communicate(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        stdout, stderr = command.communicate(10)
        raise subprocess.TimeoutExpired(command.args, timeout, stdout, stderr) from None
    code = command.wait()
    if check and code:
        raise subprocess.CalledProcessError(code, command.args, stdout, stderr)
    return subprocess.CompletedProcess(command.args, code, stdout, stderr)


def start(
    arguments: Sequence[object],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    imports: str = "",
) -> "Command":
    """Start `python ARGUMENTS`, with the arguments of `run`."""
    return Command(_server(imports), list(map(str, arguments)), cwd, env)


class Subprocess:
    """Stands in for `subprocess` in a module of the package that only runs commands of the package: they are forked.

    Args:
        imports: as of `run`.
        timeout: as of `run`.
    """

    PIPE = subprocess.PIPE

    def __init__(self, imports: str = "", timeout: float = 120) -> None:
        self._imports, self._timeout = imports, timeout

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str = "",
        stdout: int | None = None,
        capture_output: bool = False,
        **options: Any,
    ) -> "subprocess.CompletedProcess[str]":
        """Return what `subprocess.run` returns. What is not captured is printed; `options` are those that are always set here."""
        process = run(command[1:], env=env, timeout=self._timeout, input=input, imports=self._imports)
        if not capture_output:
            print(process.stderr, end="", file=sys.stderr)
        if not capture_output and stdout is None:
            print(process.stdout, end="")
        return process


class Command:
    """A command that was started, similar to `subprocess.Popen`. Its output is kept in files, so that it never waits for a reader.

    Args:
        server: the process that forks it.
        arguments: as of `run`.
        cwd: the folder that it runs in; None: this one.
        env: its whole environment; None: this process's.
        input: its standard input.

    Attributes:
        args: the arguments.
        pid: its process id, which is also the id of its session and process group.
        returncode: its exit code, negative for a signal; None until `poll` or `wait` has seen its end.
    """

    def __init__(
        self,
        server: "_Server",
        arguments: list[str],
        cwd: Path | str | None,
        env: Mapping[str, str] | None,
        input: str = "",
    ) -> None:
        assert arguments[0] in ("-m", "-c")
        self.args = arguments
        self.returncode: int | None = None
        self._server = server
        self._folder = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        (self._folder / "stdin").write_text(input)
        environment = dict(os.environ if env is None else env)
        order = {"arguments": arguments, "cwd": str(cwd or os.getcwd()), "environment": environment}
        self.pid = server.fork(order | {"folder": str(self._folder)})

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs."""
        if self.returncode is None:
            self._server.read_reports(0.0)
            self.returncode = self._server.exit_codes.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Return the exit code once the command has ended; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._server.read_reports(0.05)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for the end, and return standard output and standard error."""
        self.wait(timeout)
        return self.stdout(), self.stderr()

    def stdout(self) -> str:
        """Return the standard output until now."""
        return self._text("stdout")

    def stderr(self) -> str:
        """Return the standard error until now."""
        return self._text("stderr")

    def send_signal(self, number: int) -> None:
        """Send a signal, if the command still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, if the command still runs."""
        self.send_signal(signal.SIGKILL)

    def _text(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):  # it was killed before it opened the file
            return (self._folder / name).read_text(errors="replace")
        return ""


_servers: dict[tuple[int, str], "_Server"] = {}  # by process, so that a fork of this one has its own


def _server(imports: str = "") -> "_Server":
    key = (os.getpid(), imports)
    if key not in _servers:
        _servers[key] = _Server(imports)
    return _servers[key]


class _Server:
    """The process that forks, seen from the tests.

    Args:
        imports: as of `run`.

    Attributes:
        exit_codes: of commands that have ended, by process id.
    """

    def __init__(self, imports: str) -> None:
        self.exit_codes: dict[int, int] = {}
        self._pids: list[int] = []  # of commands that were forked, and are not known to the test yet
        self._partial_line = b""
        self._lock = threading.RLock()
        command = [sys.executable, __file__, imports]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _ONE_THREAD
        )
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; commands that still run go on."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(10)

    def fork(self, order: dict[str, Any]) -> int:
        """Start a command, and return its process id."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            deadline = time.monotonic() + 120
            while not self._pids:
                assert time.monotonic() < deadline, "the process that forks commands does not answer"
                self.read_reports(1.0)
            return self._pids.pop()

    def read_reports(self, seconds: float) -> None:
        """Read what the process reports, waiting `seconds` at most for a first report."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        with self._lock:
            while select.select([handle], [], [], seconds)[0]:
                data = os.read(handle, 65536)
                assert data, "the process that forks commands has ended"
                *lines, self._partial_line = (self._partial_line + data).split(b"\n")
                for line in lines:
                    report = json.loads(line)
                    if "code" in report:
                        self.exit_codes[report["pid"]] = report["code"]
                    else:
                        self._pids.append(report["pid"])
                        self.exit_codes.pop(report["pid"], None)  # of an earlier process with this id
                seconds = 0.0


def _serve() -> None:
    """Fork for each line read; report the process id, and the exit code when the process has ended."""
    from qllm_exp.utils.start_time import rest_collector, wake_collector

    rest_collector()
    _IMPORTS[sys.argv[1]]()
    wake_collector()  # a fork's collector leaves the pages alone that it shares with this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close the input
    orders, reports = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    # A signal that arrives during select must not be missed: its handler writes into a pipe that select reads.
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    pids: set[int] = set()
    partial_line = b""
    while True:
        ready = select.select([orders, wakeup_read], [], [])[0]
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        if orders in ready:
            data = os.read(orders, 1 << 20)
            if not data:
                return
            *lines, partial_line = (partial_line + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for handle in (orders, reports, wakeup_read, wakeup_write):
                        os.close(handle)
                    order = json.loads(line)
                    _exit_after(lambda: _command(order))  # noqa: B023 - it is called at once
                pids.add(pid)
                _report(reports, pid=pid)
        for pid in list(pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pids.remove(pid)
                _report(reports, pid=pid, code=os.waitstatus_to_exitcode(status))


def _report(handle: int, **fields: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(handle, json.dumps(fields).encode() + b"\n")


def _import_what_runs_need() -> None:
    import torch
    from hydra.core.plugins import Plugins

    from qllm_exp import algorithms, mixers  # noqa: F401
    from qllm_exp.algorithms import q_learning  # noqa: F401
    from qllm_exp.config import compose, load, overrides  # noqa: F401
    from qllm_exp.credit import stored_function  # noqa: F401
    from qllm_exp.envs import lbf, matrix, mpe, smax  # noqa: F401
    from qllm_exp.generation import provide  # noqa: F401
    from qllm_exp.networks import gru_kernel  # noqa: F401
    from qllm_exp.results.figures import per_task  # noqa: F401
    from qllm_exp.results.records import collect  # noqa: F401
    from qllm_exp.runs import heartbeat, versions  # noqa: F401
    from qllm_exp.sweep import fork_server, launch, local, plan, single_run  # noqa: F401
    from qllm_exp.training import checkpoint, trainer  # noqa: F401

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser imports torch's compiler
    Plugins.instance()  # finds the plugins, which are the same for every command


def _import_litellm() -> None:
    """Import what runs need and litellm. Commands share the verdicts on the functions that a language model writes."""
    _import_what_runs_need()
    from verdicts import Verdicts

    from qllm_exp.generation import provide
    from qllm_exp.llm import online

    online._litellm()
    folder = tempfile.mkdtemp(prefix="verdicts-")
    atexit.register(shutil.rmtree, folder)  # forks end without their exit handlers
    provide.verify_all = Verdicts(Path(folder))


def _import_wandb() -> None:
    import wandb.apis.public  # noqa: F401

    from qllm_exp.config import load  # noqa: F401
    from qllm_exp.envs import lbf, matrix, mpe  # noqa: F401
    from qllm_exp.tracking import wandb_client, wandb_payload, wandb_restore  # noqa: F401

    wandb_client._RETRY_LIMITS["RETRY_MAX"] = "1"  # of requests to a server that was lost on purpose


_IMPORTS = {"": _import_what_runs_need, "litellm": _import_litellm, "wandb": _import_wandb}


def _exit_after(body: Any) -> NoReturn:
    """Call `body` and exit as Python would, and run nothing after it."""
    code = 1
    try:
        body()
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


def _command(order: dict[str, Any]) -> None:
    """What a forked process does, as `python -m MODULE ...` would."""
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for handle, name in enumerate(("stdin", "stdout", "stderr")):
        file = os.open(os.path.join(order["folder"], name), os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, handle)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [order["cwd"], *own]
    option, program, *arguments = order["arguments"]
    if any("search" in argument for argument in arguments):
        _prepare_fork_servers(_STAGES)
    elif program in _SWEEPS and ("-m" in arguments or "retry" in [program.rpartition(".")[2], *arguments[:1]]):
        _prepare_fork_servers(1)
    sys.argv[1:] = arguments
    if option == "-c":
        sys.argv[0] = "-c"
        exec(program, {"__name__": "__main__"})
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _prepare_fork_servers(number: int) -> None:
    """Fork the fork servers of a command, before it has changed anything in its process. Each waits until the command starts it."""
    from qllm_exp.sweep import fork_server

    prepared = [_ForkServer() for _ in range(number)]

    def popen(command: list[str], **options: Any) -> Any:
        """Return a prepared process for each of the first fork servers of the command, a new one for any further."""
        return prepared.pop().begin(options["env"]) if prepared else subprocess.Popen(command, **options)

    fork_server.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": popen})  # type: ignore[assignment]


class _ForkServer:
    """The process of a sweep's fork server, as `subprocess.Popen` would start it.

    Attributes:
        pid: its process id.
        stdin: its input.
        stdout: its output.
    """

    def __init__(self) -> None:
        input_read, input_write = os.pipe()
        output_read, output_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(input_write)
            os.close(output_read)
            for handle, standard in ((input_read, 0), (output_write, 1)):
                os.dup2(handle, standard)
                os.close(handle)
            _exit_after(self._serve)
        os.close(input_read)
        os.close(output_write)
        self.stdin: IO[bytes] = open(input_write, "wb")  # noqa: SIM115 - closed by its user
        self.stdout: IO[bytes] = open(output_read, "rb")  # noqa: SIM115

    def begin(self, environment: Mapping[str, str]) -> "_ForkServer":
        """Let it serve, in this environment."""
        self.stdin.write(json.dumps(dict(environment)).encode() + b"\n")
        self.stdin.flush()
        return self

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _serve(self) -> None:
        from qllm_exp.sweep import fork_server

        os.setsid()
        line = b""
        while not line.endswith(b"\n"):  # byte by byte: what follows is for the fork server
            byte = os.read(0, 1)
            if not byte:
                return  # the sweep has started no run
            line += byte
        os.environ.clear()
        os.environ.update(json.loads(line))
        fork_server._serve()


if __name__ == "__main__":
    _serve()
