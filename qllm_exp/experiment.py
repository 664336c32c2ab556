"""One run, from its directory to its result. `python -m qllm_exp.experiment RUN_FOLDER` starts or resumes it."""

import contextlib
import ctypes
import errno
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from qllm_exp.config import schema
from qllm_exp.errors import RunFailed, UserError, error_line, user_traceback
from qllm_exp.runs.json_files import write_object
from qllm_exp.runs.metrics import MetricsRow
from qllm_exp.runs.run_directory import Busy, RunDirectory
from qllm_exp.tracking.sidecar import Sidecar
from qllm_exp.utils.text import inert_lines

log = logging.getLogger(__name__)

FAILED, INTERRUPTED, BUSY = 1, 3, 4  # exit codes of a run's process; 0: finished, 2: the command line is wrong
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
    directory.lock()
    result = _finished_result(directory)  # the previous owner of the lock may have finished the run
    if result is not None:
        directory.close()
        return result
    handler = _log_to(directory.log)
    sidecar = Sidecar(directory, run.tracking)
    try:
        return _train(run, directory, show, sidecar)
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
        directory.set_status("interrupted")
        raise
    finally:
        sidecar.close()
        logging.getLogger().removeHandler(handler)
        handler.close()
        directory.close()


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        return UserError(
            f"Cannot write to {directory.path}: {error.strerror}. Free some space and run the same command again to resume "
            "from the last checkpoint, or choose another location with dir=..."
        )
    return None


def _record_error(directory: RunDirectory, error: Exception) -> None:
    """Write to the status file how the run ended, and the traceback of an unexpected error to its log."""
    from qllm_exp.training.trainer import Interrupted

    if isinstance(error, Interrupted):
        state, message = "interrupted", ""
    elif isinstance(error, UserError):
        state, message = "failed", str(error)
    else:
        state, message = "failed", error_line(error)
        with contextlib.suppress(OSError), open(directory.log, "a") as file:  # the console gets it from the caller
            file.write("".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # on a full disk this fails too; `error` itself is raised by the caller
        directory.set_status(state, error=message)


def _train(run: schema.RunConfig, directory: RunDirectory, show: bool, sidecar: Sidecar) -> RunResult:
    """Train from the checkpoint or from the start, evaluate, and write the result. The directory is locked."""
    import torch

    from qllm_exp.envs import make_env
    from qllm_exp.runs.heartbeat import Heartbeat
    from qllm_exp.training.checkpoint import CheckpointStore
    from qllm_exp.training.seeds import derive
    from qllm_exp.training.trainer import Trainer

    begin, imports_s = time.monotonic(), time.process_time()
    keep_freed_memory()
    torch.set_num_threads(1)
    _write_versions(directory)
    step = directory.status().get("checkpoint_step", 0) if directory.checkpoint.exists() else 0
    directory.set_status(
        "running",
        error="",
        env_step=step,
        checkpoint_step=step,
        total_steps=run.train.total_steps,
        started=time.time(),
    )
    stop = _StopRequest()
    heartbeat = Heartbeat(directory, stop.request)
    env = None
    try:
        env = make_env(run.env, int(run.env.num_envs), derive(run.seed, "environment"), run.device)
        algorithm = build_algorithm(run, directory, env)
        progress = _ProgressReport(directory, run, show)
        trainer = Trainer(run.train, env, algorithm, run.seed, directory.append, progress, stop)
        options = run.train.checkpoint
        checkpoints = CheckpointStore(directory.checkpoint, trainer.buffer, options.every_s, options.max_share)
        saved = checkpoints.load()
        if saved is not None:
            trainer.load_state_dict(saved)
            resumed = {"env_step": trainer.env_steps, "checkpoint_step": trainer.env_steps}
            directory.note_progress(**resumed, **{"return": trainer.last_evaluation})
            directory.refresh_status()
            log.info("resuming from the checkpoint at %s environment steps", f"{trainer.env_steps:,}")
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
    import torch

    policies = {"last": trainer.algorithm.policy_state_dict(), "best": trainer.best_policy}
    torch.save(policies, directory.policy)
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


def _write_versions(directory: RunDirectory) -> None:
    from qllm_exp.networks import gru_kernel
    from qllm_exp.runs.versions import versions

    write_object(directory.versions, versions() | {"network_kernel": gru_kernel.status()})


def _log_to(path: Path) -> logging.Handler:
    """Write all log messages to a file. The caller removes the handler."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


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
    """

    def __init__(self) -> None:
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
        """Whether a stop was requested."""
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
        Exit code: 0 finished, 2 wrong arguments, or FAILED, INTERRUPTED or BUSY.
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
        directory.stop_request.unlink(missing_ok=True)
    try:
        execute(directory)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return BUSY if isinstance(error, Busy) else FAILED
    except Interrupted:
        print(
            f"interrupted at a checkpoint; to resume: python -m qllm_exp.experiment {directory.path}", file=sys.stderr
        )
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
