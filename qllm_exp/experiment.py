"""One run from one configuration, start to result. `python -m qllm_exp.experiment RUN_FOLDER` starts it, or goes on with it."""

import contextlib
import ctypes
import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import Busy, RunDirectory
from qllm_exp.tracking.sidecar import Mirror

log = logging.getLogger(__name__)

FAILED, INTERRUPTED, BUSY = 1, 3, 4  # exit codes of a run's process; 0: finished, 2: it could not start
PARENT = "QLLM_EXP_PARENT"  # environment variable: the process that started this one, and that it is not to outlive


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves."""

    path: Path
    final_return: float  # evaluation at the end of training, mean episode return
    absolute_return: float  # the best parameters of the run, evaluated once more on more episodes


def execute(directory: RunDirectory, show: bool = True) -> RunResult:
    """Run what a folder's config.yaml describes, from its checkpoint if there is one, and return the result.

    Args:
        show: progress bar or lines on the console.

    Raises:
        UserError: for what the user can mend. Interrupted: asked to stop by SIGINT, SIGTERM or SIGUSR2.
    """
    run = directory.read_config()
    finished = _finished(directory)
    if finished is not None:
        return finished
    directory.lock()
    finished = _finished(directory)  # by the process that had the folder until now
    if finished is not None:
        directory.close()
        return finished
    handler = _log_file(directory.log)
    mirror = Mirror(directory, run.tracking)
    try:
        return _locked(run, directory, show, mirror)
    except Exception as error:
        mended = _user_error(error, directory)
        _say_how_it_ended(directory, error if mended is None else mended)
        if mended is not None and mended is not error:
            raise mended from error
        raise
    except KeyboardInterrupt:
        directory.set_status("interrupted")
        raise
    finally:
        mirror.close()
        logging.getLogger().removeHandler(handler)
        handler.close()
        directory.close()


def _finished(directory: RunDirectory) -> RunResult | None:
    done = directory.result()
    if done is None:
        return None
    log.info("%s is finished already (return %.3f); nothing to do.", directory.path, done["final_return"])
    return RunResult(directory.path, done["final_return"], done["absolute_return"])


def _user_error(error: Exception, directory: RunDirectory) -> UserError | None:
    """The error in the user's terms: what it is when it is meant for the user, a full disk, or None."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        go_on = "The same command goes on from the last checkpoint once there is room"
        return UserError(
            f"Cannot write to {directory.path}: {error.strerror}. {go_on} (or choose another folder: dir=...)."
        )
    return None


def _say_how_it_ended(directory: RunDirectory, error: Exception) -> None:
    from qllm_exp.training.trainer import Interrupted

    state, text = "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if isinstance(error, Interrupted):
        state, text = "interrupted", ""
    elif not isinstance(error, UserError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # a full disk does not take this either; the error itself is on its way up
        directory.set_status(state, error=text)


def _locked(run: schema.RunConfig, directory: RunDirectory, show: bool, mirror: Mirror) -> RunResult:
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
    directory.set_status("running", error="", env_step=0, total_steps=run.train.total_steps, started=time.time())
    stop = _StopRequest()
    heartbeat = Heartbeat(directory, stop.ask)
    env = None
    try:
        env = make_env(run.env, int(run.env.num_envs), derive(run.seed, "environment"), run.device)
        algorithm = algorithm_of(run, directory, env)
        shown: list[Any] = []  # the progress display, once it is known where the run starts

        def progress(figures: dict[str, Any]) -> None:
            steps_per_s = round(shown[0].speed(figures["env_step"]), 1)
            directory.note(env_step=figures["env_step"], steps_per_s=steps_per_s, **{"return": figures["return"]})
            if show:
                shown[0](figures)

        trainer = Trainer(run.train, env, algorithm, run.seed, directory.append, progress, stop)
        c = run.train.checkpoint
        checkpoints = CheckpointStore(directory.checkpoint, trainer.buffer, c.every_s, c.max_share)
        saved = checkpoints.load()
        if saved is not None:
            trainer.load_state_dict(saved)
            log.info("going on from the checkpoint at %s environment steps", f"{trainer.env_steps:,}")
        directory.open_metrics(trainer.offset)
        mirror.start()
        shown.append(_progress(directory, run, trainer.env_steps))
        start_s = imports_s + time.monotonic() - begin
        log.info("%s: ready after %.1f s", directory.path.name, start_s)
        try:
            trainer.train(checkpoints)
            trainer.clock.seconds["checkpoint"] = checkpoints.seconds
            result = _finish(run, directory, trainer, start_s)
        finally:
            shown[0].close()
    finally:
        stop.restore()
        heartbeat.close()
        if env is not None:
            env.close()
    checkpoints.remove()
    directory.set_status("finished", env_step=trainer.env_steps)
    return result


def algorithm_of(run: schema.RunConfig, directory: RunDirectory, env: Any) -> Any:
    """The algorithm with its first parameters. Equal seeds give equal agents, whatever parameters the mixer has."""
    import torch

    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.mixers import make_mixer
    from qllm_exp.training.seeds import derive

    config = run.mixer
    if isinstance(config, schema.FunctionMixerConfig):  # the run has a copy of its function
        config = replace(config, file=str(directory.tfcaf))
    torch.manual_seed(derive(run.seed, "mixer"))
    mixer = make_mixer(config, env)
    torch.manual_seed(derive(run.seed, "networks"))
    return make_algorithm(run, env, mixer)


def _finish(run: schema.RunConfig, directory: RunDirectory, trainer: Any, start_s: float) -> RunResult:
    """The absolute metric (Gorsane et al. 2022), the parameters, and the result file, which marks the run as finished."""
    import torch

    policies = {"last": trainer.algorithm.policy_state_dict(), "best": trainer.best_policy}
    torch.save(policies, directory.policy)
    trainer.algorithm.load_policy_state_dict(trainer.best_policy)
    absolute = trainer.evaluate(run.train.evaluation.absolute_episodes, "absolute")
    directory.append({"kind": "absolute", "env_step": run.train.total_steps, **absolute.row()})
    final = float(trainer.last_evaluation)
    directory.finish(
        {
            "final_return": final,
            "absolute_return": absolute.return_mean,
            "env_steps": trainer.env_steps,
            "episodes": trainer.episodes,
            "updates": trainer.updates,
            "parameters": trainer.algorithm.parameter_counts(),
            "wall_s": round(trainer.wall_s, 3),
            "start_s": round(start_s, 3),
            "seconds": {part: round(s, 2) for part, s in trainer.clock.seconds.items()},
        }
    )
    return RunResult(directory.path, final, absolute.return_mean)


def _progress(directory: RunDirectory, run: schema.RunConfig, start: int) -> Any:
    from qllm_exp.runs.progress_bar import Progress

    return Progress(directory.path.name, run.train.total_steps, start)


def _write_versions(directory: RunDirectory) -> None:
    from qllm_exp.networks import gru_kernel
    from qllm_exp.runs.versions import versions

    path = directory.path / "versions.json"
    path.write_text(json.dumps(versions() | {"network_kernel": gru_kernel.status()}, indent=1) + "\n")


def _log_file(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.DEBUG)
    return handler


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: an update frees and takes the same ones again, and page faults cost time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def _end_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) for SIGTERM when the parent ends, so that a sweep that is killed leaves no run behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class _StopRequest:
    """Asked to stop, by a signal or through the run's folder: the trainer sees it after its cycle. A second SIGINT ends it."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {s: signal.signal(s, self._signalled) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}

    def _signalled(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def ask(self) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    """Run the folder given; the exit code says how it ended."""
    from qllm_exp.training.trainer import Interrupted

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m qllm_exp.experiment RUN_FOLDER    (start a run, or go on with it)", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    directory = RunDirectory(Path(arguments[0]))
    if PARENT in os.environ:
        _end_with_parent(int(os.environ.pop(PARENT)))
    else:
        directory.stop_request.unlink(missing_ok=True)  # by hand: what was asked of an earlier process does not hold
    try:
        execute(directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY if isinstance(error, Busy) else FAILED
    except Interrupted:
        print(f"stopped at a checkpoint; to go on: python -m qllm_exp.experiment {directory.path}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
