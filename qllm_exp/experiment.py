"""One run, from its directory to its result. `python -m qllm_exp.experiment RUN_FOLDER` starts or resumes it."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from qllm_exp.config import schema
from qllm_exp.errors import RunFailed, UserError, error_line, user_traceback
from qllm_exp.runs.json_files import read_object, write_object
from qllm_exp.runs.metrics import MetricsRow
from qllm_exp.runs.run_directory import Busy, DiskFull, RunDirectory
from qllm_exp.tracking.sidecar import Sidecar
from qllm_exp.utils.files import is_disk_full, write_atomically
from qllm_exp.utils.memory import Memory, available_memory
from qllm_exp.utils.start_time import wake_collector
from qllm_exp.utils.text import inert_lines

log = logging.getLogger(__name__)

# Exit codes of a run's process; 0: finished, 2: the command line is wrong.
FAILED, INTERRUPTED, BUSY, DISK_FULL = 1, 3, 4, 5
REMOVED = "The run directory was removed while the run was in progress. The same command starts the run again."
PARENT = "QLLM_EXP_PARENT"  # environment variable: id of the parent process, which this process must not outlive


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run.

    Attributes:
        path: the run directory.
        final_return: mean return of the last evaluation.
        absolute_return: mean return of the absolute metric: the best parameters, evaluated once more on more episodes.
    """

    path: Path
    final_return: float
    absolute_return: float


def execute(directory: RunDirectory, show: bool = True) -> RunResult:
    """Execute the run of a directory, from its checkpoint if there is one.

    Args:
        directory: directory of the run; its config.yaml defines the run.
        show: whether to show progress on the console.

    Raises:
        UserError: an error that the user can fix. RunFailed: code of the user's own failed; the message ends with the traceback
            from the user's line on, and the log has all of it.
        Interrupted: the run was requested to stop, by SIGINT, SIGTERM, SIGUSR2 or through its directory.
    """
    run = directory.read_config()
    result = _finished_result(directory)
    if result is not None:
        return result
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(directory.close)
        try:
            directory.lock()
            result = _finished_result(directory)  # the previous owner of the lock may have finished the run
            if result is not None:
                return result
            cleanup.enter_context(_log_to(directory.log))
            sidecar = Sidecar(directory, run.tracking)
            cleanup.callback(sidecar.close)
            return _train(run, directory, show, sidecar)
        except Busy:
            raise
        except Exception as error:
            user_error = _as_user_error(error, directory)
            _record_error(directory, error if user_error is None else user_error)
            if user_error is not None and user_error is not error:
                raise user_error from error
            own = "" if isinstance(error, UserError) else user_traceback(error)
            if own:
                raise RunFailed(f"{own}\nThe whole traceback: {directory.log}") from error
            raise
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                if not directory.was_removed():
                    directory.set_status("interrupted")
            raise


def _finished_result(directory: RunDirectory) -> RunResult | None:
    """Return the result of a finished run, None if the run is not finished."""
    result = directory.result()
    if result is None:
        return None
    log.info("%s is already finished (return %.3f).", directory.path, result["final_return"])
    return RunResult(directory.path, result["final_return"], result["absolute_return"])


def _as_user_error(error: Exception, directory: RunDirectory) -> UserError | None:
    """Return the error as a UserError if the user can fix it, such as a full disk; None otherwise."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and is_disk_full(error):
        return DiskFull(directory.path, str(error.strerror))
    if directory.was_removed():
        return RunFailed(REMOVED)
    return None


def _record_error(directory: RunDirectory, error: Exception) -> None:
    """Write to the status file how the run ended, and the traceback of an unexpected error to its log."""
    from qllm_exp.training.trainer import Interrupted

    reason = directory.pruned() if isinstance(error, Interrupted) else ""
    if isinstance(error, Interrupted):
        state, message = "pruned" if reason else "interrupted", ""
    elif isinstance(error, UserError):
        state, message = "failed", str(error)
    else:
        state, message = "failed", error_line(error)
    if directory.was_removed():
        return  # another run may have its place
    if not isinstance(error, UserError):
        with contextlib.suppress(OSError), open(directory.log, "a") as file:  # the console gets it from the caller
            file.write("".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # on a full disk this fails too; `error` itself is raised by the caller
        directory.set_status(state, error=message, reason=reason)


def _train(run: schema.RunConfig, directory: RunDirectory, show: bool, sidecar: Sidecar) -> RunResult:
    """Train from the checkpoint or from the start, evaluate, and write the result. The directory is locked."""
    import torch

    from qllm_exp.envs import make_env
    from qllm_exp.runs.heartbeat import Heartbeat
    from qllm_exp.training.checkpoint import CheckpointStore
    from qllm_exp.training.replay import check_memory, episode_size
    from qllm_exp.training.seeds import derive
    from qllm_exp.training.trainer import Trainer

    begin, imports_s = time.monotonic(), time.process_time()
    keep_freed_memory()
    torch.set_num_threads(1)
    versions = _versions(run)
    if not directory.versions.exists():
        write_object(directory.versions, versions)
    step = directory.status().get("checkpoint_step", 0) if directory.checkpoint.exists() else 0
    directory.set_status(
        "running",
        error="",
        env_step=step,
        checkpoint_step=step,
        total_steps=run.train.total_steps,
        started=time.time(),
    )
    stop = _StopRequest(directory)
    heartbeat = Heartbeat(directory, stop.request)
    env = None
    try:
        env = make_env(run.env, int(run.env.num_envs), derive(run.seed, "environment"), run.device)
        algorithm = build_algorithm(run, directory, env)
        wake_collector()
        check_memory(episode_size(env), env.num_envs, run.train, algorithm.on_policy, _memory(run.device))
        progress = _ProgressReport(directory, run, show)
        trainer = Trainer(run.train, env, algorithm, run.seed, directory.append, progress, stop)
        options = run.train.checkpoint
        checkpoints = CheckpointStore(directory.checkpoint, trainer.buffer, options.every_s, options.max_share)
        saved = checkpoints.load()
        if saved is None:
            write_object(directory.versions, versions)
        else:
            trainer.load_state_dict(saved)
            resumed = {"env_step": trainer.env_steps, "checkpoint_step": trainer.env_steps}
            directory.note_progress(**resumed, **{"return": trainer.last_evaluation})
            directory.refresh_status()
            log.info("resuming from the checkpoint at %s environment steps", f"{trainer.env_steps:,}")
            _record_resumption(directory, versions, trainer.env_steps)
        directory.open_metrics(trainer.offset)
        sidecar.start()
        progress.start(trainer.env_steps)
        start_s = imports_s + time.monotonic() - begin
        log.info("%s: ready after %.1f s", directory.path.name, start_s)
        try:
            trainer.train(checkpoints)
            trainer.timer.seconds["checkpoint"] = checkpoints.seconds
            result = _finish(run, directory, trainer, start_s)
        finally:
            progress.close()
    finally:
        stop.restore()
        heartbeat.close()
        if env is not None:
            env.close()
    checkpoints.remove()
    directory.set_status("finished", env_step=trainer.env_steps)
    return result


def _memory(device: str) -> Memory | None:
    """Return the memory for the episodes of a run, which are stored on its device; None if it is not known."""
    import torch

    if device == "cpu":
        return available_memory()
    return Memory(torch.cuda.mem_get_info(torch.device(device))[0], f"the GPU ({device})")


class _ProgressReport:
    """Reports progress to the status file and, with `show`, on the console.

    The trainer gets it before a checkpoint is loaded; `start` is called once the first step of this process is known.
    """

    def __init__(self, directory: RunDirectory, run: schema.RunConfig, show: bool) -> None:
        self._directory, self._run, self._show = directory, run, show
        self._display: Any = None

    def start(self, env_step: int) -> None:
        """Begin the display at the environment step at which this process starts."""
        from qllm_exp.runs.progress_bar import Progress

        self._display = Progress(self._directory.path.name, self._run.train.total_steps, env_step)

    def __call__(self, progress: dict[str, Any]) -> None:
        """Report {'env_step': ..., 'checkpoint_step': of the last checkpoint, 'return': of the last evaluation or None}."""
        step = progress["env_step"]
        steps_per_s = round(self._display.speed(step), 1)
        self._directory.note_progress(
            env_step=step,
            checkpoint_step=progress["checkpoint_step"],
            steps_per_s=steps_per_s,
            **{"return": progress["return"]},
        )
        if self._show:
            self._display(progress)

    def close(self) -> None:
        self._display.close()


def build_algorithm(run: schema.RunConfig, directory: RunDirectory, env: Any) -> Any:
    """Return the algorithm of a run with its initial parameters.

    Mixer and networks have their own seeds: equal seeds give equal agents, however many parameters the mixer has.

    Args:
        run: configuration of the run.
        directory: directory of the run, with its copy of the credit-assignment function.
        env: environment of the run.
    """
    import torch

    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.mixers import make_mixer
    from qllm_exp.training.seeds import derive

    config = run.mixer
    if isinstance(config, schema.FunctionMixerConfig):
        config = replace(config, file=str(directory.tfcaf))
    torch.manual_seed(derive(run.seed, "mixer"))
    mixer = make_mixer(config, env)
    torch.manual_seed(derive(run.seed, "networks"))
    return make_algorithm(run, env, mixer)


def _finish(run: schema.RunConfig, directory: RunDirectory, trainer: Any, start_s: float) -> RunResult:
    """Evaluate the absolute metric (Gorsane et al. 2022), and write the parameters and the result.

    The result file is written last, since it marks the run as finished.
    """
    from qllm_exp.training.checkpoint import to_bytes

    policies = {"last": trainer.algorithm.policy_state_dict(), "best": trainer.best_policy}
    write_atomically(directory.policy, to_bytes(policies))
    trainer.algorithm.load_policy_state_dict(trainer.best_policy)
    absolute = trainer.evaluate(run.train.evaluation.absolute_episodes, "absolute")
    row = {"kind": "absolute", "env_step": run.train.total_steps, **absolute.row()}
    directory.append(cast(MetricsRow, row))
    final_return = float(trainer.last_evaluation)
    directory.finish(
        {
            "final_return": final_return,
            "absolute_return": absolute.return_mean,
            "env_steps": trainer.env_steps,
            "episodes": trainer.episodes,
            "updates": trainer.updates,
            "parameters": trainer.algorithm.parameter_counts(),
            "wall_s": round(trainer.wall_s, 3),
            "start_s": round(start_s, 3),
            "seconds": {part: round(seconds, 2) for part, seconds in trainer.timer.seconds.items()},
        }
    )
    return RunResult(directory.path, final_return, absolute.return_mean)


def _versions(run: schema.RunConfig) -> dict[str, str]:
    """Return the versions of everything that may change the numbers of the run, and the names of system and host."""
    from qllm_exp.envs import env_versions
    from qllm_exp.networks import gru_kernel
    from qllm_exp.runs.versions import hardware, software

    versions = {**software(), **_own_modules(run), **env_versions(run.env), **hardware()}
    if run.device.startswith("cuda"):
        import torch

        return versions | {"gpu": torch.cuda.get_device_name(run.device)}
    return versions | {"kernel": gru_kernel.version()}


def _own_modules(run: schema.RunConfig) -> dict[str, str]:
    """Return {'module NAME': hash} for each module of the user's own that the run imports by its name."""
    from qllm_exp.config.registry import choices, find_source
    from qllm_exp.runs.versions import source_hash

    versions = {}
    for group, name in (("env", run.env.name), ("algorithm", run.algorithm.name), ("mixer", run.mixer.name)):
        source = None if name in choices(group) else find_source(name)
        if source is not None:
            files = source.parent.rglob("*.py") if source.name == "__init__.py" else [source]
            versions[f"module {name}"] = source_hash(files, source.parent)
    return versions


def _record_resumption(directory: RunDirectory, versions: dict[str, str], env_step: int) -> None:
    """Record the versions of a resumed run, and log in one line which differ from those of its last part.

    Args:
        directory: directory of the run.
        versions: versions of this process.
        env_step: environment step of the checkpoint.
    """
    from qllm_exp.runs.versions import changes, differences, resumed_record, segments

    record = resumed_record(read_object(directory.versions), versions, env_step)
    write_object(directory.versions, record)
    *earlier, last = segments(record)
    if not earlier or last["env_step"] != env_step:
        return
    listed = "; ".join(f"{name} {change}" for name, change in differences(earlier[-1], last).items())
    if any(step == env_step for step, _ in changes(record)):
        log.warning(
            "resumed with other software or hardware, so numbers after step %s may differ from those of a run that was never "
            "stopped: %s",
            f"{env_step:,}",
            listed,
        )
    else:
        log.info("resumed with another commit, whose files that train are the same: %s", listed)


class _LogFile(logging.FileHandler):
    """A log file. It is silent about a full disk: the run fails on that too, and reports it once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Handle an exception of the file; called by `emit`."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write all log messages within the `with` block to a file."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # as in `_LogFile`
            handler.close()


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks. Each update allocates the same blocks again, and page faults would slow it down."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def _end_with_parent(parent: int) -> None:
    """Let the kernel (Linux) send SIGTERM when the parent ends, so that a killed sweep leaves no run behind.

    Args:
        parent: process id of the parent.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before prctl was called
        os.kill(os.getpid(), signal.SIGTERM)


class _StopRequest:
    """Request to stop, by a signal or through the run directory. The trainer checks it after each cycle.

    A second SIGINT raises KeyboardInterrupt at once.

    Args:
        directory: directory of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._requested = False
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request()

    def request(self) -> None:
        """Request the run to stop at its next checkpoint."""
        self._requested = True

    def __call__(self) -> bool:
        """Whether a stop was requested.

        Raises:
            RunFailed: the run directory was removed, so there is no place for a checkpoint.
        """
        if self._requested and self._directory.was_removed():
            raise RunFailed(REMOVED)
        return self._requested

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    """Execute the run of a directory from the command line.

    Args:
        arguments: the run directory.

    Returns:
        Exit code: 0 finished, 2 wrong arguments, or FAILED, INTERRUPTED, BUSY or DISK_FULL.
    """
    from qllm_exp.training.trainer import Interrupted

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m qllm_exp.experiment RUN_FOLDER    (start or resume a run)", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    directory = RunDirectory(Path(arguments[0]))
    if PARENT in os.environ:
        _end_with_parent(int(os.environ.pop(PARENT)))
    else:  # started by hand: a stop request for an earlier process no longer holds
        directory.withdraw_stop_request()
    try:
        execute(directory)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return BUSY if isinstance(error, Busy) else DISK_FULL if isinstance(error, DiskFull) else FAILED
    except Interrupted:
        how = directory.pruned() or "interrupted at a checkpoint"
        print(f"{how}; to resume: python -m qllm_exp.experiment {directory.path}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
