"""Compose configurations, and train runs and sweeps."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.api.results import load_runs
from qllm_exp.errors import RunFailed, UserError

if TYPE_CHECKING:
    import pandas

    from qllm_exp.config.schema import RunConfig
    from qllm_exp.experiment import RunResult

_NOTHING_STARTED, _INTERRUPTED = 2, 3  # exit codes of the command


def compose(overrides: Sequence[str] = ()) -> "RunConfig":
    """Return the configuration of one run, checked and with every default. Nothing is started.

    Args:
        overrides: as on the command line, e.g. ['env=mpe', 'mixer=qmix', 'train.gamma=0.95'].

    Returns:
        The options as attributes, e.g. `config.train.gamma`.

    Raises:
        UserError: an option or a choice is unknown, or a value is out of bounds.

    Examples:
        >>> qllm_exp.compose(["env=mpe", "train=quick"]).train.total_steps
        100000
    """
    from qllm_exp.config.compose import compose_run

    return compose_run(overrides)


def run(overrides: Sequence[str] = ()) -> "RunResult":
    """Train one run to its end, in a process of its own, and return its result.

    Args:
        overrides: as on the command line, e.g. ['env=mpe', 'mixer=qmix', 'train=quick'].

    Returns:
        `path`, `final_return` and `absolute_return`. A finished run is not trained again; an interrupted one is resumed.

    Raises:
        UserError: the configuration is wrong; nothing was started.
        RunFailed: the run failed or was stopped at a checkpoint; the message says which and why.

    Examples:
        >>> result = qllm_exp.run(["env=matrix", "mixer=vdn", "train=quick"])
        >>> result.final_return
        125.0
    """
    from qllm_exp.experiment import RunResult
    from qllm_exp.search import search
    from qllm_exp.sweep.local import Local
    from qllm_exp.sweep.prepare import check, prepare

    prepared = prepare(check(compose(overrides)), lambda run: search(run, Local()))
    directory = prepared.directory
    directory.create(prepared.config, prepared.tfcaf)
    process = subprocess.run([sys.executable, "-m", "qllm_exp.experiment", str(directory.path)], check=False)
    result = directory.result()
    if result is None:
        reason = directory.status().get("error") or f"exit code {process.returncode}"
        if process.returncode == _INTERRUPTED:
            reason = "stopped at a checkpoint; the same call resumes it"
        raise RunFailed(f"{directory.path}: {reason}")
    return RunResult(directory.path, result["final_return"], result["absolute_return"])


def run_sweep(overrides: Sequence[str]) -> "pandas.DataFrame":
    """Train every combination of the overrides, and return the runs of this sweep.

    Args:
        overrides: as after `qllm-exp -m`, e.g. ['env=lbf,mpe', 'mixer=tfcaf,qmix', 'seed=0-4', 'train=quick'].
            `sweep.name` names the sweep's directory; without it, its name is made from the overrides.

    Returns:
        The runs, as `load_runs` returns them. A finished run is not trained again. Failed runs are rows with their state.
        With a Slurm launcher, runs are queued when this returns.

    Raises:
        UserError: the sweep cannot start; the message is on standard error.
        KeyboardInterrupt: the sweep was interrupted; its runs stopped at checkpoints, and the same call resumes them.

    Examples:
        >>> runs = qllm_exp.run_sweep(["env=matrix", "mixer=tfcaf,qmix", "seed=0-4", "train=quick"])
        >>> runs.groupby("method").final_return.mean()
    """
    values = dict(override.partition("=")[::2] for override in overrides)
    for key in ("dir", "sweep.name"):
        if "${" in values.get(key, ""):
            raise UserError(
                f"{key}={values[key]}: run_sweep reads the results there. Write the name itself, without ${{...}}."
            )
    folder = Path(values.get("dir", "runs"))
    name = values.get("sweep.name") or f"sweep_{hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:8]}"
    arguments = [*(override for override in overrides if not override.startswith("sweep.name=")), f"sweep.name={name}"]
    code = subprocess.run([sys.executable, "-m", "qllm_exp", "-m", *arguments], check=False).returncode
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code == _NOTHING_STARTED or not (folder / name).exists():
        raise UserError(f"The sweep cannot start: {shlex.join(arguments)}. The reason is above, on standard error.")
    return load_runs(folder / name)
