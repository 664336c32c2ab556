"""From a checked configuration to a run that is ready to start: nothing left open, its function at hand, its folder named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from qllm_exp import config as configuration
from qllm_exp import schema
from qllm_exp.errors import UserError
from qllm_exp.tracking import login
from qllm_exp.tracking.run_dir import RunDirectory


def settle_device(device: str) -> str:
    """'auto' becomes 'cuda' where there is a GPU, else 'cpu'. UserError for a GPU that is not there."""
    count = _gpu_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"device={device}: PyTorch sees {count} GPUs here. Use device=auto or device=cpu.")
    return device


@cache
def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


Settle = Callable[[str], str]  # from a device as configured to that of the machine that a run will be on


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: its configuration, its folder, and the text of its TFCAF."""

    run: schema.Run
    directory: RunDirectory
    tfcaf: str | None


def check(run: schema.Run, settle: Settle = settle_device) -> schema.Run:
    """The run with what the configuration leaves open settled (device, device-dependent sizes).

    Raises UserError for whatever would keep it from starting. Nothing is written and no language model is asked.
    """
    from qllm_exp.algorithms import check_combination
    from qllm_exp.envs import env_module

    run = replace(run, device=settle(run.device))
    run = configuration.with_num_envs(run, run.device.partition(":")[0])
    check_combination(run.algorithm.name, run.mixer.name)
    env_module(run.env.name).check(run.env)
    if isinstance(run.tracking, schema.Wandb):
        login.check(run.tracking, (*run.sweep.tags, *run.tracking.tags))
    if isinstance(run.mixer, schema.Tfcaf):
        from qllm_exp.tfcaf import provide

        source = provide.locate(run)
        if source.is_there or not source.key:
            _check_fits(run, source.path)
        else:
            provide.check_can_ask(run)
    return run


def missing_function(run: schema.Run) -> Path | None:
    """Where the run's credit-assignment function will be once it is generated; None when it is there, or is not needed."""
    if not isinstance(run.mixer, schema.Tfcaf):
        return None
    from qllm_exp.tfcaf import provide

    source = provide.locate(run)
    return source.path if source.key and not source.is_there else None


def prepare(run: schema.Run) -> Prepared:
    """Provide the credit-assignment function of a checked run (a language model may be asked for it), and name its folder."""
    text, tfcaf_hash = None, None
    if isinstance(run.mixer, schema.Tfcaf):
        from qllm_exp.ranking import ranking
        from qllm_exp.tfcaf import provide

        path = provide.provide(run, ranking(run))
        tfcaf_hash = _check_fits(run, path)
        text = _text(path, path.stat().st_mtime_ns)
    name = configuration.run_name(run, tfcaf_hash)
    return Prepared(run, RunDirectory(Path(run.dir) / name), text)


@cache
def _text(path: Path, stamp: int) -> str:
    return path.read_text(encoding="utf-8")


# Environment, mixer and file that are known to go together, and the hash of the function's program.
_FIT: dict[tuple[Any, ...], str] = {}


def _check_fits(run: schema.Run, path: Path) -> str:
    """Hash of the function's program; UserError when it is for other sizes, or does not go with the gate. Once per pair."""
    from qllm_exp.mixers import make_mixer
    from qllm_exp.tfcaf import entry, provide

    stamp = path.stat().st_mtime_ns if path.exists() else None
    pair = (repr(run.env), repr(run.mixer), path, stamp)
    if pair not in _FIT:
        stored = entry.load(path)
        with provide.environment(run) as env:
            make_mixer(run.mixer, env, stored)
        _FIT[pair] = stored.program.hash
    return _FIT[pair]
