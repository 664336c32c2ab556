"""From a checked configuration to a run that is ready to start: nothing left open, its function at hand, its folder named."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.config.load import run_name, with_num_envs
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.coder_evaluator import Ranker
from qllm_exp.generation.verify import Accepted
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_login


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: its configuration, its folder, and the text of its TFCAF."""

    run: schema.RunConfig
    directory: RunDirectory
    tfcaf: str | None


def check(run: schema.RunConfig, settle: DeviceResolver = resolve_device) -> schema.RunConfig:
    """The run with what the configuration leaves open settled (device, device-dependent sizes).

    Raises UserError for whatever would keep it from starting. Nothing is written and no language model is asked.
    """
    from qllm_exp.algorithms import check_combination
    from qllm_exp.envs import env_module

    run = replace(run, device=settle(run.device))
    run = with_num_envs(run, run.device.partition(":")[0])
    check_combination(run.algorithm.name, run.mixer.name)
    env_module(run.env.name).check(run.env)
    if isinstance(run.tracking, schema.WandbConfig):
        wandb_login.check(run.tracking, (*run.sweep.tags, *run.tracking.tags))
    if isinstance(run.mixer, schema.FunctionMixerConfig):
        from qllm_exp.generation import provide

        source = provide.locate(run)
        if source.is_there or not source.key:
            _check_fits(run, source.path)
        else:
            provide.check_can_ask(run)
    return run


def missing_function(run: schema.RunConfig) -> Path | None:
    """Where the run's credit-assignment function will be once it is generated; None when it is there, or is not needed."""
    if not isinstance(run.mixer, schema.FunctionMixerConfig):
        return None
    from qllm_exp.generation import provide

    source = provide.locate(run)
    return source.path if source.key and not source.is_there else None


def prepare(run: schema.RunConfig) -> Prepared:
    """Provide the credit-assignment function of a checked run (a language model may be asked for it), and name its folder."""
    text, tfcaf_hash = None, None
    if isinstance(run.mixer, schema.FunctionMixerConfig):
        from qllm_exp.generation import provide

        path = provide.provide(run, ranking(run))
        tfcaf_hash = _check_fits(run, path)
        text = _text(path, path.stat().st_mtime_ns)
    name = run_name(run, tfcaf_hash)
    return Prepared(run, RunDirectory(Path(run.dir) / name), text)


@cache
def _text(path: Path, stamp: int) -> str:
    return path.read_text(encoding="utf-8")


# Environment, mixer and file that are known to go together, and the hash of the function's program.
_FIT: dict[tuple[Any, ...], str] = {}


def _check_fits(run: schema.RunConfig, path: Path) -> str:
    """Hash of the function's program; UserError when it is for other sizes, or does not go with the gate. Once per pair."""
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide
    from qllm_exp.mixers import make_mixer

    assert isinstance(run.mixer, schema.FunctionMixerConfig)
    stamp = path.stat().st_mtime_ns if path.exists() else None
    pair = (repr(run.env), repr(run.mixer), path, stamp)
    if pair not in _FIT:
        with provide.environment(run) as env:
            make_mixer(replace(run.mixer, file=str(path)), env)
        _FIT[pair] = stored_function.load(path).program.hash
    return _FIT[pair]


def ranking(run: schema.RunConfig) -> Ranker:
    """Gives each candidate the mean return, over `run.tfcaf.probe.seeds`, of the last evaluation of a short training with it."""

    def rank(candidates: Sequence[Accepted]) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder:
            return [_short_training(run, one, Path(folder) / str(number)) for number, one in enumerate(candidates)]

    return rank


def _short_training(run: schema.RunConfig, candidate: Accepted, folder: Path) -> float:
    assert isinstance(run.mixer, schema.FunctionMixerConfig)
    file = folder / "candidate.json"
    with provide.environment(run) as env:
        provide.imported(candidate, env, "a candidate").save(file)
    steps = run.tfcaf.probe.total_steps
    evaluation = replace(run.train.evaluation, every=steps, absolute_episodes=1)
    train = replace(run.train, total_steps=steps, evaluation=evaluation)
    mixer = replace(run.mixer, file=str(file))
    returns = []
    for seed in range(run.tfcaf.probe.seeds):
        ready = prepare(check(replace(run, mixer=mixer, train=train, seed=seed, dir=str(folder), device="auto")))
        ready.directory.create(ready.run, ready.tfcaf)
        command = [sys.executable, "-m", "qllm_exp.experiment", str(ready.directory.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = ready.directory.result()
        if result is None:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"A short training for tfcaf.selection=probe failed: {said[-1]}")
        returns.append(float(result["final_return"]))
    return sum(returns) / len(returns)
